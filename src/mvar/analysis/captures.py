"""What mixers do in a real forward pass: outputs of submodules, taken by hooks and reduced to sums at once.

Shapes: B images, H attention heads, h heads of Mamba-2, L tokens of all K scales, d head width, q queries, t keys.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import accumulate
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvar.nn.attention import Attention
from mvar.nn.mamba2 import Mamba2
from mvar.ops.attention import split_heads
from mvar.ops.numerics import at_least_float32

CHUNK_BYTES = 2**26  # of attention weights at once


@contextmanager
def capturing(network: nn.Module, takers: Mapping[str, Callable[[Tensor], object]]) -> Iterator[None]:
    """Within it, the output of each named submodule also goes to its function, which must not change it.

    What other threads do with the network meanwhile is not taken.
    """
    mine = get_ident()

    def passing(take: Callable[[Tensor], object]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if get_ident() == mine:
                take(output)

        return hook

    with ExitStack() as stack:
        for name, take in takers.items():
            stack.callback(network.get_submodule(name).register_forward_hook(passing(take)).remove)
        yield


def first_seen(reach: str, k: int) -> int:
    """The first of the scales that queries of scale k see; scale k is the last."""
    return {"global": 0, "recent": max(k - 1, 0), "intra": k}[reach]


def score_sums(attention: Attention, qkv_BLX: Tensor, areas: tuple[int, ...]) -> Tensor:
    """Attention scores by scale of the query (rows) and of the key, summed over images, heads and queries.

    Args:
        qkv_BLX: what `attention.qkv` gives for the tokens of all scales.

    Returns:
        float64 (K, K), on the CPU; row k sums to the number of images, heads and tokens of scale k.
    """
    sums_KK = torch.zeros(len(areas), len(areas), dtype=torch.float64)
    for k, first, scores_BHqt in _scores(attention, qkv_BLX, areas):
        by_key_t = scores_BHqt.sum((0, 1, 2)).cpu().double()  # in this order: Apple's GPUs have no float64
        sums_KK[k, first : k + 1] += torch.stack([part.sum() for part in by_key_t.split(areas[first : k + 1])])
    return sums_KK


def score_widths(attention: Attention, qkv_BLX: Tensor, areas: tuple[int, ...]) -> list[float]:
    """How widely each scale's queries look: exp(entropy of the scores) over the number of keys that they see.

    1 is all keys alike; 1 / (number of keys), a single one. The mean over images, heads and queries, by scale.
    """
    sums, counts = [0.0] * len(areas), [0] * len(areas)
    for k, _, scores_BHqt in _scores(attention, qkv_BLX, areas):
        keys_BHq = torch.special.entr(scores_BHqt).sum(-1).exp() / scores_BHqt.shape[-1]
        sums[k] += float(keys_BHq.sum())
        counts[k] += keys_BHq.numel()
    return [total / count for total, count in zip(sums, counts, strict=True)]


def _scores(attention: Attention, qkv_BLX: Tensor, areas: tuple[int, ...]) -> Iterator[tuple[int, int, Tensor]]:
    """(k, first, scores (B, H, q, t)) of some queries of scale k at a time, for the keys of scales first to k."""
    q_BHLd, k_BHLd, _ = split_heads(qkv_BLX.unflatten(-1, (3, attention.heads, -1)), attention.log_scale)
    B, H = q_BHLd.shape[:2]
    ends = list(accumulate(areas, initial=0))
    for k in range(len(areas)):
        first = first_seen(attention.reach, k)
        k_BHtd = at_least_float32(k_BHLd[:, :, ends[first] : ends[k + 1]])  # all of them visible: no mask
        rows = max(1, CHUNK_BYTES // (B * H * k_BHtd.shape[2] * k_BHtd.element_size()))
        for q_BHqd in q_BHLd[:, :, ends[k] : ends[k + 1]].split(rows, dim=2):
            yield k, first, (attention.softmax_scale * at_least_float32(q_BHqd) @ k_BHtd.mT).softmax(-1)


def log_decays(mamba: Mamba2, projected_BLX: Tensor, areas: tuple[int, ...]) -> Tensor:
    """The logarithm of what is left of each head's state after each scale: the sum of dt A over the scale's tokens.

    Args:
        projected_BLX: what `mamba.in_proj` gives for the tokens of all scales.

    Returns:
        float64 (B, K, h), on the CPU.
    """
    A_h = -at_least_float32(mamba.A_log).exp()
    dt_BLh = F.softplus(at_least_float32(projected_BLX[..., -len(A_h) :]) + at_least_float32(mamba.dt_bias))
    return torch.stack([part.sum(1) for part in (dt_BLh * A_h).cpu().double().split(areas, dim=1)], dim=1)
