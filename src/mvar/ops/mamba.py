"""All of Mamba-2 between its two projections: convolution, state-space scan, gate and norm.

mamba-ssm's kernel was never run here on a GPU; its arguments and layout are tested with a stand-in.

Shapes: B batch, L tokens, h heads of P channels, E = h P, N state size, D = E + 2N channels of the short convolution, W
its width, V = W - 1, x = E + D + h numbers of a projected token.
Source: Mamba-2 (Dao & Gu 2024), section 7; the recurrence is its equation 1 with a scalar decay for each head and one
group.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mvar.ops import native
from mvar.ops.causal_conv import causal_conv
from mvar.ops.dispatch import mamba_ssm, runs_native, runs_reference
from mvar.ops.norms import gated_rms_norm
from mvar.ops.numerics import at_least_float32, without_autocast
from mvar.ops.ssd import ssd

CONV_WIDTH = 4
EPS = 1e-5  # of the norm
CHUNKS = (16, 256)  # shortest and longest of mamba-ssm's kernel, powers of two

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


class MambaWeights(NamedTuple):
    """A layer's parameters but for its projections, in any float dtype."""

    conv_weight_DW: Tensor
    conv_bias_D: Tensor
    dt_bias_h: Tensor
    A_log_h: Tensor
    skip_h: Tensor
    norm_E: Tensor


class MambaState(NamedTuple):
    """All that later tokens need of earlier ones, at least float32; its size does not grow."""

    tail_BVD: Tensor
    ssm_BhPN: Tensor

    @classmethod
    def start(cls, batch: int, weights: MambaWeights) -> "MambaState":
        """The state before the first token: zeros."""
        (D, W), E, h = weights.conv_weight_DW.shape, len(weights.norm_E), len(weights.A_log_h)
        like = at_least_float32(weights.A_log_h)
        return cls(like.new_zeros(batch, W - 1, D), like.new_zeros(batch, h, E // h, (D - E) // 2))


def scan(
    x_BLhP: Tensor, dt_BLh: Tensor, A_h: Tensor, key_BLN: Tensor, query_BLN: Tensor, state_BhPN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The state-space scan by what MVAR_OPS and the device choose; arguments and results as `mvar.ops.ssd.ssd`."""
    arguments = (x_BLhP, dt_BLh, A_h, key_BLN, query_BLN, state_BhPN)
    if runs_reference():
        return ssd_reference(*arguments)
    kernel = mamba_ssm(x_BLhP.device)
    return ssd(*arguments) if kernel is None else _by_kernel(kernel, *arguments)


def ssd_reference(
    x_BLhP: Tensor, dt_BLh: Tensor, A_h: Tensor, key_BLN: Tensor, query_BLN: Tensor, state_BhPN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition, token by token: S <- exp(dt A) S + dt x (outer) key; y = S query. Arguments as `ssd`."""
    B, L, h, P = x_BLhP.shape
    if state_BhPN is None:
        state_BhPN = dt_BLh.new_zeros(B, h, P, key_BLN.shape[-1])
    exact_BLhP, key_BLN, query_BLN = (t.to(dt_BLh.dtype) for t in (x_BLhP, key_BLN, query_BLN))
    y_BhP = []
    for i in range(L):
        dt_Bh = dt_BLh[:, i]
        written_BhPN = torch.einsum("bh,bhp,bn->bhpn", dt_Bh, exact_BLhP[:, i], key_BLN[:, i])
        state_BhPN = torch.exp(dt_Bh * A_h)[..., None, None] * state_BhPN + written_BhPN
        y_BhP.append(torch.einsum("bhpn,bn->bhp", state_BhPN, query_BLN[:, i]))
    return torch.stack(y_BhP, dim=1).to(x_BLhP.dtype), state_BhPN


def mamba(
    projected_BLx: Tensor, weights: MambaWeights, state: MambaState | None = None, scan: Scan = scan
) -> tuple[Tensor, MambaState]:
    """Gate (E), what is convolved (D) and steps (h) of each token -> what the output projection takes (B, L, E).

    Tokens, keys and queries keep the dtype of `projected_BLx`; steps, decays, states and means are at least float32.

    Args:
        state: before these tokens; None at the start.
        scan: for a stand-in with the same results.
    """
    D, E, h = len(weights.conv_bias_D), len(weights.norm_E), len(weights.A_log_h)
    fits_native = h * native.HEAD_DIM == E and (D - E) // 2 % native.LANES == 0
    with without_autocast(projected_BLx):
        A_h = -at_least_float32(weights.A_log_h).exp()
        if fits_native and runs_native(projected_BLx):
            return _mamba_native(projected_BLx, weights, A_h, state)
        z_BLE, xbc_BLD, dt_BLh = projected_BLx.split((E, D, h), dim=-1)
        tail_BVD, ssm_BhPN = (None, None) if state is None else state
        conv_weight_DW, conv_bias_D, skip_h = (
            t.to(projected_BLx.dtype) for t in (weights.conv_weight_DW, weights.conv_bias_D, weights.skip_h)
        )
        xbc_BLD, tail_BVD = causal_conv(xbc_BLD, conv_weight_DW, conv_bias_D, tail_BVD)
        x_BLE, key_BLN, query_BLN = F.silu(xbc_BLD).split((E, (D - E) // 2, (D - E) // 2), dim=-1)
        x_BLhP = x_BLE.unflatten(-1, (h, -1))
        dt_BLh = F.softplus(at_least_float32(dt_BLh) + at_least_float32(weights.dt_bias_h))
        y_BLhP, ssm_BhPN = scan(x_BLhP, dt_BLh, A_h, key_BLN, query_BLN, ssm_BhPN)
        y_BLE = torch.addcmul(y_BLhP, skip_h[:, None], x_BLhP).flatten(2)
        y_BLE = gated_rms_norm(y_BLE, z_BLE, weights.norm_E, EPS)
        return y_BLE, MambaState(at_least_float32(tail_BVD), ssm_BhPN)


def _mamba_native(
    projected_BLx: Tensor, weights: MambaWeights, A_h: Tensor, state: MambaState | None
) -> tuple[Tensor, MambaState]:
    """The same without a gradient, in passes compiled for this processor; all but the tokens is float32."""
    tail_BVD, ssm_BhPN = MambaState.start(len(projected_BLx), weights) if state is None else state
    exact = {name: at_least_float32(t) for name, t in weights._asdict().items() if name != "A_log_h"}
    y_BLE, *after = native.mamba(projected_BLx, tail_BVD, ssm_BhPN, EPS, A_h=A_h, **exact)
    return y_BLE, MambaState(*after)


def _by_kernel(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    x_BLhP: Tensor,
    dt_BLh: Tensor,
    A_h: Tensor,
    key_BLN: Tensor,
    query_BLN: Tensor,
    state_BhPN: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """mamba-ssm's `mamba_chunk_scan_combined`: keys and queries have a dimension of groups, here one."""
    shortest, longest = CHUNKS
    chunk = min(max(1 << (x_BLhP.shape[1] - 1).bit_length(), shortest), longest)
    y_BLhP, state_BhPN = kernel(
        x_BLhP.contiguous(),
        dt_BLh.contiguous(),
        A_h,
        key_BLN[:, :, None].contiguous(),
        query_BLN[:, :, None].contiguous(),
        chunk_size=chunk,
        initial_states=state_BhPN,
        return_final_states=True,
    )
    return y_BLhP, at_least_float32(state_BhPN)
