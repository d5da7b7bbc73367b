"""The Mamba-2 mixer: causal over all tokens, linear in their number, its state passed in and out.

Shapes: B batch, L tokens of this call, C width, E inner width 2C, h heads of P channels, N state size, D = E + 2N
channels of the short convolution, W its width, V = W - 1.
Source: Mamba-2 (Dao & Gu 2024), section 7; the layer of M-VAR (Ren et al. 2024), section 3.3.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvar.nn.linear import Linear
from mvar.ops.causal_conv import causal_conv
from mvar.ops.precision import at_least_float32, without_autocast
from mvar.ops.scan import scan

EXPANSION = 2
CONV_WIDTH = 4
EPS = 1e-5


class MambaState(NamedTuple):
    """All that later tokens need of earlier ones; its size does not grow."""

    tail_BVD: Tensor
    ssm_BhPN: Tensor


class Mamba2(nn.Module):
    """in_proj -> z, xBC, dt; short convolution and SiLU on xBC; SSD; gated RMSNorm; out_proj.

    Attributes:
        scan: `mvar.ops.scan.scan`, or a stand-in of the same results, such as one that torch.compile leaves alone.
    """

    def __init__(self, width: int, *, state_size: int, head_dim: int) -> None:
        super().__init__()
        self.scan = scan
        self.inner, self.state_size, self.head_dim = EXPANSION * width, state_size, head_dim
        self.num_heads = self.inner // head_dim
        self.conv_channels = self.inner + 2 * state_size
        self.in_proj = Linear(width, self.inner + self.conv_channels + self.num_heads, bias=False)
        self.conv_weight = nn.Parameter(torch.zeros(self.conv_channels, CONV_WIDTH))
        self.conv_bias = nn.Parameter(torch.zeros(self.conv_channels))
        self.dt_bias = nn.Parameter(torch.zeros(self.num_heads))
        self.A_log = nn.Parameter(torch.zeros(self.num_heads))
        self.D = nn.Parameter(torch.zeros(self.num_heads))
        self.norm_weight = nn.Parameter(torch.ones(self.inner))
        self.out_proj = Linear(self.inner, width, bias=False)

    def initial_state(self, batch: int) -> MambaState:
        """The state before the first token: zeros, as float32 (float64 in a float64 network)."""
        like = at_least_float32(self.A_log)
        return MambaState(
            like.new_zeros(batch, CONV_WIDTH - 1, self.conv_channels),
            like.new_zeros(batch, self.num_heads, self.head_dim, self.state_size),
        )

    def forward(self, x_BLC: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """(B, L, C) and the state before them (None: the start) -> (B, L, C) and the state after them."""
        E, N = self.inner, self.state_size
        z_BLE, xbc_BLD, dt_BLh = self.in_proj(x_BLC).split((E, self.conv_channels, self.num_heads), dim=-1)
        tail_BVD, ssm_BhPN = (None, None) if state is None else state

        with without_autocast(x_BLC):
            weight_DW, bias_D, dt_bias_h, A_log_h, D_h, norm_E = (
                at_least_float32(p)
                for p in (self.conv_weight, self.conv_bias, self.dt_bias, self.A_log, self.D, self.norm_weight)
            )
            xbc_BLD, tail_BVD = causal_conv(xbc_BLD, weight_DW, bias_D, tail_BVD)
            x_BLE, key_BLN, query_BLN = F.silu(xbc_BLD).split((E, N, N), dim=-1)
            x_BLhP = x_BLE.unflatten(-1, (self.num_heads, self.head_dim))
            dt_BLh = F.softplus(at_least_float32(dt_BLh) + dt_bias_h)
            y_BLhP, ssm_BhPN = self.scan(x_BLhP, dt_BLh, -A_log_h.exp(), key_BLN, query_BLN, ssm_BhPN)
            y_BLE = torch.addcmul(y_BLhP, D_h[:, None], x_BLhP).flatten(2)
            y_BLE = F.rms_norm(y_BLE * F.silu(at_least_float32(z_BLE)), (E,), norm_E, EPS)
        return self.out_proj(y_BLE), MambaState(tail_BVD, ssm_BhPN)
