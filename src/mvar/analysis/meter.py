"""What the mixers of a block do over all scales: where attention looks, and how much of its state Mamba keeps.

Shapes: B images, K scales, L tokens, h heads of Mamba-2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mvar.analysis.captures import first_seen, log_decays, score_sums
from mvar.generator.block import Block

WIDE = ("global", "recent")  # attention that sees other scales


@dataclass
class Meter:
    """Sums over the images of one block."""

    block: Block
    areas: tuple[int, ...]
    images: int = 0
    sums_KK: Tensor = field(init=False)  # attention scores
    left_KK: Tensor = field(init=False)  # of Mamba's state

    def __post_init__(self) -> None:
        K = len(self.areas)
        self.sums_KK, self.left_KK = torch.zeros(2, K, K, dtype=torch.float64).unbind()

    @property
    def reach(self) -> str:
        """What the block's attention sees."""
        return "none" if self.block.attention is None else self.block.attention.reach

    @property
    def scores(self) -> Tensor:
        """(K, K): the mean over queries of scale k (a row) of their scores for each scale; rows sum to 1."""
        return self.sums_KK / self.sums_KK.sum(1, keepdim=True)

    def takers(self, name: str) -> dict[str, Callable[[Tensor], None]]:
        """What takes which outputs of the block of this name."""
        found: dict[str, Callable[[Tensor], None]] = {}
        if self.reach in WIDE:
            found[f"{name}.attention.qkv"] = self._attention
        if self.block.mamba is not None:
            found[f"{name}.mamba.in_proj"] = self._mamba
        return found

    def _attention(self, qkv_BLX: Tensor) -> None:
        assert self.block.attention is not None
        self.sums_KK += score_sums(self.block.attention, qkv_BLX, self.areas)

    def _mamba(self, projected_BLX: Tensor) -> None:
        assert self.block.mamba is not None
        total_BKh = log_decays(self.block.mamba, projected_BLX, self.areas).cumsum(1)
        left_BKKh = (total_BKh[:, None] - total_BKh[:, :, None]).clamp(max=0).exp()  # after the second K, of the first
        self.images += len(total_BKh)
        self.left_KK += left_BKKh.mean(3).sum(0)

    def report(self) -> dict[str, Any]:
        """The block's mixers, and what was measured of each; None for what it lacks."""
        return {
            "attention": self.reach,
            "mamba": self.block.mamba is not None,
            "score": looks(self.scores, self.areas) if self.reach in WIDE else None,
            "state": {"left": keeps(self.left_KK / self.images)} if self.block.mamba else None,
        }


def looks(scores_KK: Tensor, areas: Sequence[int]) -> dict[str, Any]:
    """What follows from the mean scores of queries of each scale (rows) for keys of each scale.

    Returns:
        "intra", "inter": the shares inside the own scale and across scales, of all queries; "intra_by_scale";
        "back": the shares of the inter-scale score that go to the scale just before, two before, ...; "distance": its
        mean number of scales back, by scale of the query, None where there is none; "scores" by scale of the query.
    """
    K, weight_K = len(areas), torch.tensor(areas).double() / sum(areas)
    own_K = scores_KK.diagonal()
    back = [float((weight_K[n:] * scores_KK.diagonal(-n)).sum()) for n in range(1, K)]
    n_KK = torch.arange(K)[:, None] - torch.arange(K)
    distance_K = (n_KK * scores_KK).sum(1) / (1 - own_K)
    inter = sum(back)
    return {
        "intra": float((weight_K * own_K).sum()),
        "inter": inter,
        "intra_by_scale": own_K.tolist(),
        "back": [share / inter for share in back] if inter else [],
        "distance": [None if own >= 1 else float(d) for own, d in zip(own_K, distance_K, strict=True)],
        "scores": [row[: k + 1] for k, row in enumerate(scores_KK.tolist())],
    }


def keeps(left_KK: Tensor) -> list[list[float]]:
    """How much of the state that Mamba has after scale k is left after scale k + 1, k + 2, ... (a row for each k).

    That is exp(sum of dt A over the tokens in between), the mean over images and heads.
    """
    return [row[k + 1 :] for k, row in enumerate(left_KK.tolist()[:-1])]


def equal_weights(areas: Sequence[int], reach: str) -> Tensor:
    """The scores (K, K) if a query gave all keys that it sees the same."""
    scores_KK = torch.tensor(areas).double().repeat(len(areas), 1)
    for k, row_K in enumerate(scores_KK):
        row_K[: first_seen(reach, k)] = row_K[k + 1 :] = 0
    return scores_KK / scores_KK.sum(1, keepdim=True)
