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
from mvar.ops import native
from mvar.ops.causal_conv import causal_conv
from mvar.ops.gated_norm import gated_rms_norm
from mvar.ops.precision import at_least_float32, without_autocast
from mvar.ops.scan import scan
from mvar.ops.ssd_chunk import ssd_chunk

EXPANSION = 2
CONV_WIDTH = 4
EPS = 1e-5
AT_ONCE = 2**19  # numbers of a tile, so that all that is made of them stays in a core's cache
TILE = 128  # tokens: longer ones spend more on pairs of tokens, shorter ones on the state


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
        self.fits_native = head_dim == native.HEAD_DIM and state_size % native.LANES == 0

    def initial_state(self, batch: int) -> MambaState:
        """The state before the first token: zeros, as float32 (float64 in a float64 network)."""
        like = at_least_float32(self.A_log)
        return MambaState(
            like.new_zeros(batch, CONV_WIDTH - 1, self.conv_channels),
            like.new_zeros(batch, self.num_heads, self.head_dim, self.state_size),
        )

    def forward(self, x_BLC: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """(B, L, C) and the state before them (None: the start) -> (B, L, C) and the state after them."""
        projected_BLx = self.in_proj(x_BLC)
        if self.fits_native and native.takes(projected_BLx):
            mix = self._native
        elif not torch.is_grad_enabled() and x_BLC.device.type == "cpu":
            mix = self._in_tiles
        else:
            mix = self._mix
        with without_autocast(x_BLC):
            y_BLE, state = mix(projected_BLx, state)
        return self.out_proj(y_BLE), state

    def _mix(self, projected_BLx: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState]:
        """Convolution, scan, gate and norm of all tokens at once.

        Tokens, keys and queries keep the projections' dtype; steps, decays, states and means are at least float32.
        """
        z_BLE, xbc_BLD, dt_BLh = self._split(projected_BLx)
        tail_BVD, ssm_BhPN = (None, None) if state is None else state
        weight_DW, bias_D, D_h = (t.to(projected_BLx.dtype) for t in (self.conv_weight, self.conv_bias, self.D))
        xbc_BLD, tail_BVD = causal_conv(xbc_BLD, weight_DW, bias_D, tail_BVD)
        x_BLhP, key_BLN, query_BLN = self._split_xbc(F.silu(xbc_BLD))
        y_BLhP, ssm_BhPN = self.scan(x_BLhP, self._dt(dt_BLh), self._A(), key_BLN, query_BLN, ssm_BhPN)
        y_BLE = torch.addcmul(y_BLhP, D_h[:, None], x_BLhP).flatten(2)
        y_BLE = gated_rms_norm(y_BLE, z_BLE, self.norm_weight, EPS)
        return y_BLE, MambaState(at_least_float32(tail_BVD), ssm_BhPN)

    def _native(self, projected_BLx: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState]:
        """The same without a gradient, in passes compiled for this processor; all but the tokens is float32."""
        tail_BVD, ssm_BhPN = self.initial_state(len(projected_BLx)) if state is None else state
        weights = {
            "conv_weight_DW": self.conv_weight,
            "conv_bias_D": self.conv_bias,
            "dt_bias_h": self.dt_bias,
            "A_h": self._A(),
            "skip_h": self.D,
            "norm_E": self.norm_weight,
        }
        weights = {name: at_least_float32(weight) for name, weight in weights.items()}
        y_BLE, *after = native.mamba(projected_BLx, tail_BVD, ssm_BhPN, EPS, **weights)
        return y_BLE, MambaState(*after)

    def _in_tiles(self, projected_BLx: Tensor, state: MambaState | None) -> tuple[Tensor, MambaState]:
        """The same without a gradient, a few tokens at a time: what they are computed from stays in the cache.

        Tokens, keys and queries keep the projections' dtype; steps, decays, states and norms are float32.
        """
        B, L = projected_BLx.shape[:2]
        E, dtype = self.inner, projected_BLx.dtype
        tail_BVD, ssm_BhPN = self.initial_state(B) if state is None else state
        ssm_BNE = ssm_BhPN.permute(0, 3, 1, 2).flatten(2)
        weight_DW, bias_D = self.conv_weight.to(dtype), self.conv_bias.to(dtype)
        D_h1, norm_E, A_h = self.D.to(dtype)[:, None], self.norm_weight.to(dtype), self._A()
        z_BLE, xbc_BLD, dt_BLh = self._split(projected_BLx)
        dt_BLh, tails, states, y_BLE = self._dt(dt_BLh), [], [], projected_BLx.new_empty(B, L, E)

        # At least an image a thread, which then keeps to it.
        rows = min(B, max(torch.get_num_threads(), AT_ONCE // (min(L, TILE) * E)))
        tiles = -(-L // TILE)
        for row in range(0, B, rows):
            some = slice(row, row + rows)
            tail_bVD, ssm_bNE = tail_BVD[some], ssm_BNE[some]
            for tile in range(tiles):
                part = (some, slice(tile * L // tiles, (tile + 1) * L // tiles))
                xbc_bQD, tail_bVD = causal_conv(xbc_BLD[part], weight_DW, bias_D, tail_bVD)
                x_bQhP, key_bQN, query_bQN = self._split_xbc(F.silu(xbc_bQD, inplace=True))
                y_bQhP, ssm_bNE = ssd_chunk(x_bQhP, dt_BLh[part], A_h, key_bQN, query_bQN, ssm_bNE)
                y_bQE = y_bQhP.addcmul_(D_h1, x_bQhP).flatten(2).mul_(F.silu(z_BLE[part]))
                y_BLE[part] = _rms_norm(y_bQE, norm_E)
            tails.append(tail_bVD)
            states.append(ssm_bNE)
        ssm_BhPN = torch.cat(states).unflatten(2, (self.num_heads, -1)).permute(0, 2, 3, 1)
        state = MambaState(at_least_float32(torch.cat(tails)), ssm_BhPN)
        return y_BLE, state

    def _split(self, projected_BLx: Tensor) -> tuple[Tensor, ...]:
        """Gate, what the convolution takes, and steps."""
        return projected_BLx.split((self.inner, self.conv_channels, self.num_heads), dim=-1)

    def _split_xbc(self, xbc_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heads' inputs, keys and queries."""
        x_BLE, key_BLN, query_BLN = xbc_BLD.split((self.inner, self.state_size, self.state_size), dim=-1)
        return x_BLE.unflatten(-1, (self.num_heads, self.head_dim)), key_BLN, query_BLN

    def _dt(self, dt_BLh: Tensor) -> Tensor:
        return F.softplus(at_least_float32(dt_BLh) + at_least_float32(self.dt_bias))

    def _A(self) -> Tensor:
        return -at_least_float32(self.A_log).exp()


def _rms_norm(x_BLE: Tensor, weight_E: Tensor) -> Tensor:
    """As `F.rms_norm`, in place; the mean square in float32, in fewer passes."""
    exact = torch.promote_types(x_BLE.dtype, torch.float32)
    length_BL1 = torch.linalg.vector_norm(x_BLE, dim=-1, keepdim=True, dtype=exact)
    factor_BL1 = (length_BL1.square_() / x_BLE.shape[-1] + EPS).rsqrt_()
    return x_BLE.mul_(weight_E).mul_(factor_BL1.to(x_BLE.dtype))
