"""All of Mamba-2 between its two projections: convolution, state-space scan, gate and norm.

Shapes: B batch, L tokens, h heads of P channels, E = h P, N state size, D = E + 2N channels of the short convolution, W
its width, V = W - 1 tokens of its tail, T = V + L, x = E + D + h numbers of a projected token.
Source: Mamba-2 (Dao & Gu 2024), section 7; its equation 1 with a scalar decay for each head and one group.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mvar.ops import native
from mvar.ops.dispatch import runs_kernels, runs_native, runs_reference
from mvar.ops.norms import gated_rms_norm
from mvar.ops.numerics import at_least_float32, without_autocast
from mvar.ops.ssd import ssd

CONV_WIDTH = 4
EPS = 1e-5  # of the norm

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
    """`mvar.ops.ssd.ssd`, or its definition where MVAR_OPS asks for that."""
    run = ssd_reference if runs_reference() else ssd
    return run(x_BLhP, dt_BLh, A_h, key_BLN, query_BLN, state_BhPN)


def ssd_reference(
    x_BLhP: Tensor, dt_BLh: Tensor, A_h: Tensor, key_BLN: Tensor, query_BLN: Tensor, state_BhPN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `ssd`, token by token: S <- exp(dt A) S + dt x (outer) key; y = S query."""
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
    """
    D, E, h = len(weights.conv_bias_D), len(weights.norm_E), len(weights.A_log_h)
    N = (D - E) // 2
    fits_native = h * native.HEAD_DIM == E and N % native.LANES == 0
    with without_autocast(projected_BLx):
        tail_BVD, ssm_BhPN = (None, None) if state is None else state
        continued = tail_BVD is not None and tail_BVD.requires_grad  # the kernels give a tail no gradient
        if fits_native and N in (16, 32, 64) and not continued and runs_kernels(projected_BLx):
            from mvar.ops.gpu.mamba import between_projections

            y_BLE, *after = between_projections(projected_BLx, weights, tail_BVD, ssm_BhPN, EPS)
            return y_BLE, MambaState(*after)
        A_h = -at_least_float32(weights.A_log_h).exp()
        if fits_native and runs_native(projected_BLx):
            before = state or MambaState.start(len(projected_BLx), weights)
            conv_weight_DW, conv_bias_D, dt_bias_h, _, skip_h, norm_E = map(at_least_float32, weights)
            others = (conv_weight_DW, conv_bias_D, dt_bias_h, skip_h, norm_E)
            y_BLE, *after = native.mamba(projected_BLx, *before, A_h, others, EPS)
            return y_BLE, MambaState(*after)
        z_BLE, xbc_BLD, dt_BLh = projected_BLx.split((E, D, h), dim=-1)
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


def mamba_both_ways(
    projected_BLx: Tensor,
    areas: tuple[int, ...],
    weights: MambaWeights,
    state: MambaState | None = None,
    scan: Scan = scan,
) -> tuple[Tensor, MambaState]:
    """The mean of `mamba` over the tokens of each scale, forwards and backwards, both from the state before the scale.

    Arguments and results are those of `mamba`, with the number of tokens of each scale. Only the forward reading's
    state is carried on, so that no scale depends on a later one.
    """
    B, outs = len(projected_BLx), []
    state = state or MambaState.start(B, weights)
    for projected_Blx in projected_BLx.split(areas, dim=1):
        both = torch.cat((projected_Blx, projected_Blx.flip(1)))  # 2B rows
        y_RlE, after = mamba(both, weights, MambaState(*(torch.cat((t, t)) for t in state)), scan)
        outs.append(y_RlE[:B].lerp(y_RlE[B:].flip(1), 0.5))
        state = MambaState(*(t[:B] for t in after))
    return torch.cat(outs, dim=1), MambaState(*(t.clone() for t in state))  # not views, which would keep all rows alive


# --- the short convolution ---


def causal_conv(
    x_BLD: Tensor, weight_DW: Tensor, bias_D: Tensor | None = None, tail_BVD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own kernel, whose last tap meets the current token and whose dtype results have.

    `tail_BVD` are the V tokens before this call (None: zeros); the second result is the tail for the next one.
    """
    (B, L, D), W = x_BLD.shape, weight_DW.shape[1]
    if tail_BVD is None:
        tail_BVD = weight_DW.new_zeros(B, W - 1, D)
    seen_BTD = torch.cat((tail_BVD, x_BLD), dim=1).to(weight_DW.dtype)  # cat itself promotes: one pass, not two
    tail_BVD = seen_BTD[:, L:].clone()  # not a view, which would keep all tokens alive
    convolve = causal_conv_reference if runs_reference() else _Convolution.apply
    with without_autocast(x_BLD):  # the result keeps the weight's dtype
        return convolve(seen_BTD, weight_DW, bias_D), tail_BVD


def causal_conv_reference(seen_BTD: Tensor, weight_DW: Tensor, bias_D: Tensor | None = None) -> Tensor:
    """The definition: a sum of W shifted products of the tokens with their tail before them, (B, L, D)."""
    W = weight_DW.shape[1]
    L = seen_BTD.shape[1] - W + 1
    y_BLD = torch.stack([seen_BTD[:, w : w + L] * weight_DW[:, w] for w in range(W)]).sum(0)
    return y_BLD if bias_D is None else y_BLD + bias_D


class _Convolution(torch.autograd.Function):
    """(B, T, D), (D, W) and (D,) -> (B, L, D), with gradients in a third of the time of torch's on a CPU."""

    @staticmethod
    def forward(ctx: Any, seen_BTD: Tensor, weight_DW: Tensor, bias_D: Tensor | None) -> Tensor:
        ctx.save_for_backward(seen_BTD, weight_DW)
        return _convolve(seen_BTD, weight_DW, bias_D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLD: Tensor) -> tuple[Tensor | None, ...]:
        seen_BTD, weight_DW = ctx.saved_tensors
        L, W = dy_BLD.shape[1], weight_DW.shape[1]
        with without_autocast(dy_BLD):
            dseen_BTD = _convolve(F.pad(dy_BLD, (0, 0, W - 1, W - 1)), weight_DW.flip(1))
            taps = [(dy_BLD * seen_BTD[:, w : w + L]).sum((0, 1)) for w in range(W)]
            dbias_D = dy_BLD.sum((0, 1)) if ctx.needs_input_grad[2] else None
        return dseen_BTD, torch.stack(taps, dim=1), dbias_D


def _convolve(seen_BTD: Tensor, weight_DW: Tensor, bias_D: Tensor | None = None) -> Tensor:
    """As an image of height 1 with channels last, which is how the tokens already lie in memory."""
    y_BD1L = F.conv2d(seen_BTD.transpose(1, 2).unsqueeze(2), weight_DW[:, None, None], bias_D, groups=len(weight_DW))
    return y_BD1L.squeeze(2).transpose(1, 2)
