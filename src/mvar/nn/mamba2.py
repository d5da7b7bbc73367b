"""The Mamba-2 mixer: linear in the number of tokens, its state passed in and out.

Shapes: B batch, L tokens of this call, C width, E inner width 2C, N state size, D = E + 2N channels of the short
convolution.
Source: Mamba-2 (Dao & Gu 2024), section 7; the layer of M-VAR (Ren et al. 2024), section 3.3.
"""

import torch
from torch import Tensor, nn

from mvar.nn.linear import Linear
from mvar.ops.mamba import CONV_WIDTH, MambaState, MambaWeights, mamba, mamba_both_ways, scan

EXPANSION = 2


class Mamba2(nn.Module):
    """in_proj -> z, xBC, dt; short convolution and SiLU on xBC; SSD; gated RMSNorm; out_proj.

    Causal over all tokens; if `bidirectional`, causal over scales, and inside each the mean of both directions.

    Attributes:
        scan, both_ways: `scan` and `mamba_both_ways` of `mvar.ops.mamba`, or stand-ins with the same results, such as
            those that torch.compile leaves alone.
    """

    def __init__(self, width: int, *, state_size: int, head_dim: int, bidirectional: bool = False) -> None:
        super().__init__()
        self.scan, self.both_ways, self.bidirectional = scan, mamba_both_ways, bidirectional
        E, h = EXPANSION * width, EXPANSION * width // head_dim
        D = E + 2 * state_size
        self.in_proj = Linear(width, E + D + h, bias=False)
        self.conv_weight = nn.Parameter(torch.zeros(D, CONV_WIDTH))
        self.conv_bias = nn.Parameter(torch.zeros(D))
        self.dt_bias = nn.Parameter(torch.zeros(h))
        self.A_log = nn.Parameter(torch.zeros(h))
        self.D = nn.Parameter(torch.zeros(h))
        self.norm_weight = nn.Parameter(torch.ones(E))
        self.out_proj = Linear(E, width, bias=False)

    @property
    def weights(self) -> MambaWeights:
        """The parameters between the projections."""
        return MambaWeights(self.conv_weight, self.conv_bias, self.dt_bias, self.A_log, self.D, self.norm_weight)

    def initial_state(self, batch: int) -> MambaState:
        """The state before the first token: zeros, as float32 (float64 in a float64 network)."""
        return MambaState.start(batch, self.weights)

    def forward(
        self, x_BLC: Tensor, areas: tuple[int, ...], state: MambaState | None = None
    ) -> tuple[Tensor, MambaState]:
        """Tokens of consecutive scales, of `areas` tokens each, and the state before them (None: the start)
        -> (B, L, C) and the state after them.
        """
        projected_BLx = self.in_proj(x_BLC)
        if self.bidirectional:
            y_BLE, state = self.both_ways(projected_BLx, areas, self.weights, state, self.scan)
        else:
            y_BLE, state = mamba(projected_BLx, self.weights, state, self.scan)
        return self.out_proj(y_BLE), state
