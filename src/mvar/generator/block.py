"""One block of the generator: attention, Mamba-2 and MLP, each optional but the last, each gated by the class.

Shapes: B batch, l tokens of this call, C width, n branches, R = 3n AdaLN vectors: gates, scales, shifts. Whatever the
order, attention has the first of each, Mamba-2 the last but one, the MLP the last.
Source: M-VAR (Ren et al. 2024), section 3.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from mvar.generator.config import HEAD_DIM, GeneratorConfig, Mixer
from mvar.generator.state import BlockState
from mvar.nn.attention import Attention
from mvar.nn.linear import MLP, Linear
from mvar.nn.mamba2 import Mamba2
from mvar.ops.norms import adaln, gated_sum, gated_sum_adaln
from mvar.ops.numerics import at_least_float32, product_dtype


class Block(nn.Module):
    """x = x + gate * branch(adaln(x)) for one branch after another.

    In the order "parallel" both mixers take the same x: x + gate * attention(adaln(x)) + gate * mamba(adaln(x)).
    """

    def __init__(self, config: GeneratorConfig, mixer: Mixer) -> None:
        super().__init__()
        C = config.width
        self.attention = None
        if mixer.attention != "none":
            self.attention = Attention(C, config.heads, reach=mixer.attention, qk_norm=config.qk_norm)
        self.mamba = None
        if mixer.mamba:
            both_ways = config.scan == "bidirectional"
            self.mamba = Mamba2(C, state_size=config.state_size, head_dim=HEAD_DIM, bidirectional=both_ways)
        self.mlp = MLP(C, config.mlp_ratio * C)
        self.branches, self.order = mixer.branches, config.order
        mixers = range(self.branches - 1)
        self.path = (*(reversed(mixers) if self.order == "mamba-first" else mixers), self.branches - 1)
        if config.shared_adaln:
            self.adaln_offset = nn.Parameter(torch.zeros(1, 1, 3 * self.branches, C))
        else:
            self.adaln = Linear(C, 3 * self.branches * C)

    def modulation(self, active_BC: Tensor, shared_BRC: Tensor | None) -> Tensor:
        """This block's AdaLN vectors (B, R, C) from SiLU(class embedding), or from the network's shared ones."""
        if shared_BRC is not None:
            return shared_BRC + at_least_float32(self.adaln_offset[0])
        return at_least_float32(self.adaln(active_BC)).unflatten(-1, (3 * self.branches, -1))

    def initial_state(self, batch: int) -> BlockState:
        """The state before the first scale."""
        return BlockState(mamba=None if self.mamba is None else self.mamba.initial_state(batch))

    def forward(
        self, x_BlC: Tensor, modulation_BRC: Tensor, state: BlockState, areas: tuple[int, ...]
    ) -> tuple[Tensor, BlockState]:
        """Tokens of consecutive scales, of `areas` tokens each, and the state before them -> both after this block."""
        n = self.branches
        gates, scales, shifts = (t_BnC.unbind(1) for t_BnC in modulation_BRC.split(n, dim=1))
        cache, memory = state
        dtype = product_dtype(self.mlp.fc1.weight)
        # Each sum and the norm after it are one pass.
        if self.order == "parallel" and self.attention is not None and self.mamba is not None:
            attended_BlC, cache = self.attention(adaln(x_BlC, scales[0], shifts[0], dtype), areas, cache)
            y_BlC, memory = self.mamba(adaln(x_BlC, scales[1], shifts[1], dtype), areas, memory)
            x_BlC = gated_sum(x_BlC, gates[0], attended_BlC)
            x_BlC, y_BlC = gated_sum_adaln(x_BlC, gates[1], y_BlC, scales[2], shifts[2])
        else:
            y_BlC = adaln(x_BlC, scales[self.path[0]], shifts[self.path[0]], dtype)
            for i, following in pairwise(self.path):
                if i == n - 2 and self.mamba is not None:
                    y_BlC, memory = self.mamba(y_BlC, areas, memory)
                elif self.attention is not None:
                    y_BlC, cache = self.attention(y_BlC, areas, cache)
                x_BlC, y_BlC = gated_sum_adaln(x_BlC, gates[i], y_BlC, scales[following], shifts[following])
        return gated_sum(x_BlC, gates[n - 1], self.mlp(y_BlC)), BlockState(cache, memory)
