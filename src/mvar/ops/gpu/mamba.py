"""All of Mamba-2 between its projections in three kernels: convolution + SiLU + steps, scan, skip + gate + RMSNorm.

Shapes: see `mvar.ops.mamba`; a projected token is a row of memory: gate (E), what is convolved (D), steps (h).
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from mvar.ops.gpu.launch import ROWS, TOKENS, load, on_its_device, power, silu, silu_slope, tiles, warps
from mvar.ops.gpu.scan import scan_backward, scan_forward

CHANNELS = 64  # of one program of the convolution
FEW_TOKENS = 16  # of one program of its gradient, which holds more at once
WARPS = 8  # of the scan


@triton.jit
def tap(in_ptr, tail_ptr, b, s, d, mask, L, E, D, stride, HAS_TAIL: tl.constexpr, W: tl.constexpr):
    """What the convolution reads at tokens s and channels d: of the tail where s < 0, 0 beyond the end."""
    x_TC = load(in_ptr, (b * L + s)[:, None] * stride + E + d[None, :], mask & ((s >= 0) & (s < L))[:, None])
    if HAS_TAIL:
        x_TC += load(tail_ptr, (b * (W - 1) + W - 1 + s)[:, None] * D + d[None, :], mask & (s < 0)[:, None])
    return x_TC


@triton.jit
def convolved(
    in_ptr, weight_ptr, bias_ptr, tail_ptr, b, t, d, mask, L, E, D, stride, HAS_TAIL: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """The convolution before its SiLU."""
    sum_TC = tl.where(mask, load(bias_ptr, d, d < D)[None, :], 0.0)
    for w in tl.static_range(W):
        x_TC = tap(in_ptr, tail_ptr, b, t + w - (W - 1), d, mask, L, E, D, stride, HAS_TAIL, W)
        sum_TC += x_TC * load(weight_ptr, d * W + w, d < D)[None, :]
    return sum_TC


@triton.jit(do_not_specialize=["L"])
def conv_forward(
    in_ptr, weight_ptr, bias_ptr, dt_bias_ptr, tail_ptr, xbc_ptr, dt_ptr, next_tail_ptr, L, E, D, heads,
    HAS_TAIL: tl.constexpr, W: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    """Programs: (images x tiles of tokens, tiles of channels); the first tile of channels does the steps as well."""
    tile = tl.program_id(0) % tl.cdiv(L, TOKENS)
    b, stride = (tl.program_id(0) // tl.cdiv(L, TOKENS)).to(tl.int64), E + D + heads
    t, d = tile * TOKENS + tl.arange(0, TOKENS), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (t < L)[:, None] & (d < D)[None, :]
    pre_TC = convolved(in_ptr, weight_ptr, bias_ptr, tail_ptr, b, t, d, mask, L, E, D, stride, HAS_TAIL, W)
    tl.store(xbc_ptr + (b * L + t)[:, None] * D + d[None, :], silu(pre_TC).to(xbc_ptr.dtype.element_ty), mask=mask)
    if tile == 0:
        for w in tl.static_range(W - 1):
            s = L + w - (W - 1)
            last_C = load(in_ptr, (b * L + s) * stride + E + d, (d < D) & (s + 0 * d >= 0))
            if HAS_TAIL:
                last_C += load(tail_ptr, (b * (W - 1) + W - 1 + s) * D + d, (d < D) & (s + 0 * d < 0))
            tl.store(next_tail_ptr + (b * (W - 1) + w) * D + d, last_C, mask=d < D)
    if tl.program_id(1) == 0:
        h = tl.arange(0, HEADS)
        mask_Th = (t < L)[:, None] & (h < heads)[None, :]
        raw_Th = load(in_ptr, (b * L + t)[:, None] * stride + E + D + h[None, :], mask_Th)
        raw_Th += load(dt_bias_ptr, h, h < heads)[None, :]
        dt_Th = tl.where(raw_Th > 20, raw_Th, tl.log(1 + tl.exp(tl.minimum(raw_Th, 20.0))))
        tl.store(dt_ptr + (b * L + t)[:, None] * heads + h[None, :], dt_Th, mask=mask_Th)


@triton.jit(do_not_specialize=["L"])
def conv_backward(
    dxbc_ptr, in_ptr, weight_ptr, bias_ptr, tail_ptr, din_ptr, dweight_ptr, L, E, D, stride,
    HAS_TAIL: tl.constexpr, W: tl.constexpr, TOKENS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Into the rows of din; and (programs, W + 1, D): dweight summed over a program's tokens, and last dbias."""
    b, tile = (tl.program_id(0) // tl.cdiv(L, TOKENS)).to(tl.int64), tl.program_id(0) % tl.cdiv(L, TOKENS)
    t, d = tile * TOKENS + tl.arange(0, TOKENS), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    din_TC = tl.zeros((TOKENS, CHANNELS), tl.float32)
    for w in tl.static_range(W):
        u = t + (W - 1) - w  # the token whose tap w reads t
        mask = (u < L)[:, None] & (d < D)[None, :]
        pre_TC = convolved(in_ptr, weight_ptr, bias_ptr, tail_ptr, b, u, d, mask, L, E, D, stride, HAS_TAIL, W)
        dpre_TC = load(dxbc_ptr, (b * L + u)[:, None] * D + d[None, :], mask) * silu_slope(pre_TC)
        din_TC += dpre_TC * load(weight_ptr, d * W + w, d < D)[None, :]
        if w == W - 1:  # u = t: this program's own tokens
            to = dweight_ptr + tl.program_id(0).to(tl.int64) * (W + 1) * D + d
            for v in tl.static_range(W):
                x_TC = tap(in_ptr, tail_ptr, b, t + v - (W - 1), d, mask, L, E, D, stride, HAS_TAIL, W)
                tl.store(to + v * D, tl.sum(dpre_TC * x_TC, 0), mask=d < D)
            tl.store(to + W * D, tl.sum(dpre_TC, 0), mask=d < D)
    mask = (t < L)[:, None] & (d < D)[None, :]
    to = din_ptr + (b * L + t)[:, None] * stride + E + d[None, :]
    tl.store(to, din_TC.to(din_ptr.dtype.element_ty), mask=mask)


@triton.jit
def gate_forward(
    y_ptr, xbc_ptr, in_ptr, skip_ptr, norm_ptr, out_ptr, E, D, stride, eps, P: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """RMSNorm((y + skip x) silu(z)); one token a program."""
    row, e = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    mask = e < E
    sum_E = load(y_ptr, row * E + e, mask) + load(skip_ptr, e // P, mask) * load(xbc_ptr, row * D + e, mask)
    gated_E = sum_E * silu(load(in_ptr, row * stride + e, mask))
    factor = 1 / tl.sqrt(tl.sum(gated_E * gated_E) / E + eps)
    out_E = gated_E * factor * load(norm_ptr, e, mask)
    tl.store(out_ptr + row * E + e, out_E.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def gate_backward(
    dout_ptr, y_ptr, xbc_ptr, in_ptr, skip_ptr, norm_ptr, dy_ptr, din_ptr, dnorm_ptr, dskip_ptr,
    rows, E, D, stride, eps, ROWS: tl.constexpr, P: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dy; dz into the rows of din; dnorm and dskip, (programs, E), summed over a program's tokens."""
    e = tl.arange(0, WIDTH)
    skip_E, norm_E = load(skip_ptr, e // P, e < E), load(norm_ptr, e, e < E)
    dnorm_E, dskip_E = tl.zeros((WIDTH,), tl.float32), tl.zeros((WIDTH,), tl.float32)
    for i in range(ROWS):
        row = tl.program_id(0).to(tl.int64) * ROWS + i
        mask = (e < E) & (row + 0 * e < rows)
        x_E, z_E = load(xbc_ptr, row * D + e, mask), load(in_ptr, row * stride + e, mask)
        sum_E, gate_E = load(y_ptr, row * E + e, mask) + skip_E * x_E, silu(z_E)
        gated_E = sum_E * gate_E
        factor = 1 / tl.sqrt(tl.sum(gated_E * gated_E) / E + eps)
        dout_E = load(dout_ptr, row * E + e, mask)
        dn_E = dout_E * norm_E
        dgated_E = factor * (dn_E - gated_E * (factor * factor * tl.sum(dn_E * gated_E) / E))
        dsum_E = dgated_E * gate_E
        dnorm_E += dout_E * gated_E * factor
        dskip_E += dsum_E * x_E
        tl.store(dy_ptr + row * E + e, dsum_E.to(dy_ptr.dtype.element_ty), mask=mask)
        dz_E = dgated_E * sum_E * silu_slope(z_E)
        tl.store(din_ptr + row * stride + e, dz_E.to(din_ptr.dtype.element_ty), mask=mask)
    at_E = tl.program_id(0).to(tl.int64) * E + e
    tl.store(dnorm_ptr + at_E, dnorm_E, mask=e < E)
    tl.store(dskip_ptr + at_E, dskip_E, mask=e < E)


def _float32(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def chunk_of(projected_BLx: Tensor) -> int:
    """Tokens of a chunk: as many as leave a program's state and products in registers."""
    return 16 if projected_BLx.dtype == torch.float32 or projected_BLx.shape[1] <= 16 else 32


def _convolve(
    projected_BLx: Tensor,
    conv_weight_DW: Tensor,
    conv_bias_D: Tensor,
    dt_bias_h: Tensor,
    tail_BVD: Tensor | None,
    E: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """xbc (B, L, D) of the tokens' dtype, steps (B, L, h) and the next tail in float32."""
    (B, L, _), (D, W), h = projected_BLx.shape, conv_weight_DW.shape, len(dt_bias_h)
    xbc_BLD, dt_BLh = projected_BLx.new_empty(B, L, D), _float32(projected_BLx, B, L, h)
    next_BVD = _float32(projected_BLx, B, W - 1, D)
    conv_forward[(B * tiles(L, TOKENS), tiles(D, CHANNELS))](
        projected_BLx, conv_weight_DW, conv_bias_D, dt_bias_h, tail_BVD, xbc_BLD, dt_BLh, next_BVD, L, E, D, h,
        HAS_TAIL=tail_BVD is not None, W=W, TOKENS=TOKENS, CHANNELS=CHANNELS, HEADS=power(h),
    )  # fmt: skip
    return xbc_BLD, dt_BLh, next_BVD


def _scan(
    xbc_BLD: Tensor, dt_BLh: Tensor, A_log_h: Tensor, state_BhNP: Tensor | None, E: int, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The scan's output (B, L, E) and next state; with `save` also the states before its chunks."""
    (B, L, D), h = xbc_BLD.shape, len(A_log_h)
    P, N, Q = E // h, (D - E) // 2, chunk_of(xbc_BLD)
    y_BLE, next_BhNP = xbc_BLD.new_empty(B, L, E), _float32(xbc_BLD, B, h, N, P)
    before_BhnNP = xbc_BLD.new_empty((B, h, tiles(L, Q), N, P) if save else (0,))
    scan_forward[(B, h)](
        xbc_BLD, dt_BLh, A_log_h, state_BhNP, y_BLE, next_BhNP, before_BhnNP, L, h,
        HAS_STATE=state_BhNP is not None, SAVE=save, P=P, N=N, Q=Q, num_warps=WARPS,
    )  # fmt: skip
    return y_BLE, next_BhNP, before_BhnNP


@torch.library.custom_op("mvar::mamba", mutates_args=())
@on_its_device
def mamba(
    projected_BLx: Tensor,
    conv_weight_DW: Tensor,
    conv_bias_D: Tensor,
    dt_bias_h: Tensor,
    A_log_h: Tensor,
    skip_h: Tensor,
    norm_E: Tensor,
    tail_BVD: Tensor | None,
    state_BhNP: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `mvar.ops.mamba.mamba`; all is contiguous, tail and state are float32.

    Returns:
        The output (B, L, E), the next tail and the next state (B, h, N, P).
    """
    (B, L, _), D, E, h = projected_BLx.shape, len(conv_bias_D), len(norm_E), len(dt_bias_h)
    xbc_BLD, dt_BLh, next_tail_BVD = _convolve(projected_BLx, conv_weight_DW, conv_bias_D, dt_bias_h, tail_BVD, E)
    y_BLE, next_BhNP, _ = _scan(xbc_BLD, dt_BLh, A_log_h, state_BhNP, E, save=False)
    out_BLE, P, width = torch.empty_like(y_BLE), E // h, power(E)
    gate_forward[(B * L,)](
        y_BLE, xbc_BLD, projected_BLx, skip_h, norm_E, out_BLE, E, D, E + D + h, eps,
        P=P, WIDTH=width, num_warps=warps(width),
    )  # fmt: skip
    return out_BLE, next_tail_BVD, next_BhNP


@mamba.register_fake
def _(projected_BLx, conv_weight_DW, conv_bias_D, dt_bias_h, A_log_h, skip_h, norm_E, tail_BVD, state_BhNP, eps):
    (B, L, _), (D, W), E, h = projected_BLx.shape, conv_weight_DW.shape, len(norm_E), len(dt_bias_h)
    tail, state = _float32(projected_BLx, B, W - 1, D), _float32(projected_BLx, B, h, (D - E) // 2, E // h)
    return projected_BLx.new_empty(B, L, E), tail, state


@torch.library.custom_op("mvar::mamba_backward", mutates_args=())
@on_its_device
def mamba_backward(
    dout_BLE: Tensor,
    dnext_BhNP: Tensor | None,
    projected_BLx: Tensor,
    conv_weight_DW: Tensor,
    conv_bias_D: Tensor,
    dt_bias_h: Tensor,
    A_log_h: Tensor,
    skip_h: Tensor,
    norm_E: Tensor,
    tail_BVD: Tensor | None,
    state_BhNP: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `projected` to `norm` in this order, and of the state.

    Convolution and scan run again: a fifth of the work of this pass, for a fifth of a block's activations.
    """
    (B, L, stride), (D, W), E, h = projected_BLx.shape, conv_weight_DW.shape, len(norm_E), len(dt_bias_h)
    P, N, Q, rows = E // h, (D - E) // 2, chunk_of(projected_BLx), B * L
    xbc_BLD, dt_BLh, _ = _convolve(projected_BLx, conv_weight_DW, conv_bias_D, dt_bias_h, tail_BVD, E)
    y_BLE, _, before_BhnNP = _scan(xbc_BLD, dt_BLh, A_log_h, state_BhNP, E, save=True)
    din_BLx, dy_BLE = torch.empty_like(projected_BLx), torch.empty_like(y_BLE)
    dnorm_GE, dskip_GE = _float32(projected_BLx, 2, tiles(rows, ROWS), E).unbind()
    width = power(E)
    gate_backward[(tiles(rows, ROWS),)](
        dout_BLE.contiguous(), y_BLE, xbc_BLD, projected_BLx, skip_h, norm_E, dy_BLE, din_BLx, dnorm_GE, dskip_GE,
        rows, E, D, stride, eps, ROWS=ROWS, P=P, WIDTH=width, num_warps=warps(width),
    )  # fmt: skip
    dxbc_BLD, ddt_BLh, dA_log_Bh = torch.empty_like(xbc_BLD), torch.empty_like(dt_BLh), _float32(projected_BLx, B, h)
    dkey_BhLN, dquery_BhLN = projected_BLx.new_empty(2, B, h, L, N).unbind()
    dstate_BhNP = _float32(projected_BLx, B, h, N, P)
    scan_backward[(B, h)](
        xbc_BLD, dt_BLh, A_log_h, skip_h, before_BhnNP, dy_BLE, None if dnext_BhNP is None else dnext_BhNP.contiguous(),
        dxbc_BLD, dt_bias_h, projected_BLx[..., E + D :], ddt_BLh, dA_log_Bh, dkey_BhLN, dquery_BhLN, dstate_BhNP,
        L, h, stride, HAS_DNEXT=dnext_BhNP is not None, P=P, N=N, Q=Q, num_warps=WARPS,
    )  # fmt: skip
    torch.sum(dkey_BhLN, 1, out=dxbc_BLD[..., E : E + N])
    torch.sum(dquery_BhLN, 1, out=dxbc_BLD[..., E + N :])
    programs = B * tiles(L, FEW_TOKENS)
    dweight_GUD = _float32(projected_BLx, programs, W + 1, D)
    conv_backward[(programs, tiles(D, CHANNELS))](
        dxbc_BLD, projected_BLx, conv_weight_DW, conv_bias_D, tail_BVD, din_BLx, dweight_GUD, L, E, D, stride,
        HAS_TAIL=tail_BVD is not None, W=W, TOKENS=FEW_TOKENS, CHANNELS=CHANNELS,
    )  # fmt: skip
    din_BLx[..., E + D :] = ddt_BLh
    dweight_UD = dweight_GUD.sum(0)
    weights = conv_weight_DW, conv_bias_D, dt_bias_h, A_log_h, skip_h, norm_E
    dskip_h = dskip_GE.sum(0).view(h, P).sum(1)
    grads = dweight_UD[:W].t(), dweight_UD[W], ddt_BLh.sum((0, 1)), dA_log_Bh.sum(0), dskip_h, dnorm_GE.sum(0)
    # An operator's results may not share memory.
    copies = (torch.empty_like(weight).copy_(grad) for weight, grad in zip(weights, grads, strict=True))
    return din_BLx, *copies, dstate_BhNP  # type: ignore[return-value]


@mamba_backward.register_fake
def _(dout, dnext, projected, conv_weight, conv_bias, dt_bias, A_log, skip, norm, tail, state, eps):
    E, h = len(norm), len(dt_bias)
    dstate = _float32(projected, len(projected), h, (len(conv_bias) - E) // 2, E // h)
    return *map(torch.empty_like, (projected, conv_weight, conv_bias, dt_bias, A_log, skip, norm)), dstate


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: Tensor | None, _tail: object, dnext: Tensor | None) -> tuple[Any, ...]:
    projected_BLx, *others, state_BhNP = ctx.saved_tensors
    if dout is None:
        dout = projected_BLx.new_zeros(*projected_BLx.shape[:2], len(others[5]))
    *grads, dstate = mamba_backward(dout, dnext, projected_BLx, *others, state_BhNP, ctx.eps)
    return *grads, None, None if state_BhNP is None else dstate, None


mamba.register_autograd(_differentiate, setup_context=_keep)


def between_projections(
    projected_BLx: Tensor, weights: Sequence[Tensor], tail_BVD: Tensor | None, state_BhPN: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `mvar.ops.mamba.mamba`: the output, and the next tail and state.

    Args:
        weights: `mvar.ops.mamba.MambaWeights`.
    """
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in (projected_BLx, *weights))
    state_BhNP = None if state_BhPN is None else state_BhPN.mT.contiguous()
    tail_BVD = None if tail_BVD is None else tail_BVD.contiguous()
    out_BLE, next_tail_BVD, next_BhNP = mamba(projected_BLx.contiguous(), *weights, tail_BVD, state_BhNP, eps)
    if differentiated:  # which the convolution's operator does not differentiate
        D, E, V = len(weights[1]), len(weights[5]), next_tail_BVD.shape[1]
        xbc_BLD = projected_BLx[..., E : E + D].float()
        seen_BTD = xbc_BLD if tail_BVD is None else torch.cat((tail_BVD, xbc_BLD), dim=1)
        next_tail_BVD = F.pad(seen_BTD, (0, 0, V, 0))[:, -V:]
    return out_BLE, next_tail_BVD, next_BhNP.mT
