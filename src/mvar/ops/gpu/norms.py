"""AdaLN with the gated sum before it, and the heads of attention: one kernel each.

Shapes: B batch, L tokens, C width; J: query, key, value; H heads of d numbers.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvar.ops.gpu.launch import ROWS, TOKENS, load, number, on_its_device, power, tiles, warps

LARGEST_LOG_SCALE = tl.constexpr(math.log(100))  # as in `mvar.ops.attention`


@triton.jit(do_not_specialize=["L"])
def adaln_forward(
    x_ptr, gate_ptr, y_ptr, scale_ptr, shift_ptr, sum_ptr, out_ptr, L, C, gate_stride, scale_stride, eps,
    ADD: tl.constexpr, NORM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One token a program: sum = x + gate y where ADD, out = LayerNorm(sum) (1 + scale) + shift where NORM."""
    row, c = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    mask, b = c < C, row // L
    x_C = load(x_ptr, row * C + c, mask)
    if ADD:
        x_C += load(gate_ptr, b * gate_stride + c, mask) * load(y_ptr, row * C + c, mask)
        tl.store(sum_ptr + row * C + c, x_C, mask=mask)
    if NORM:
        centred_C = tl.where(mask, x_C - tl.sum(x_C) / C, 0.0)
        normal_C = centred_C / tl.sqrt(tl.sum(centred_C * centred_C) / C + eps)
        at_C = b * scale_stride + c
        out_C = normal_C * (1 + load(scale_ptr, at_C, mask)) + load(shift_ptr, at_C, mask)
        tl.store(out_ptr + row * C + c, out_C.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["L"])
def adaln_backward(
    dsum_ptr, dout_ptr, sum_ptr, gate_ptr, y_ptr, scale_ptr, dx_ptr, dy_ptr, dvectors_ptr,
    L, C, gate_stride, scale_stride, eps,
    ADD: tl.constexpr, NORM: tl.constexpr, HAS_DSUM: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dx and dy; (images x tiles, 3, C): dgate, dscale and dshift summed over a program's tokens."""
    b, start = tl.program_id(0).to(tl.int64) // tl.cdiv(L, ROWS), tl.program_id(0) % tl.cdiv(L, ROWS) * ROWS
    c = tl.arange(0, WIDTH)
    zero_C = tl.zeros((WIDTH,), tl.float32)
    dgate_C, dscale_C, dshift_C = zero_C, zero_C, zero_C
    for i in range(ROWS):
        at_C, mask = (b * L + start + i) * C + c, (c < C) & (start + i + 0 * c < L)
        ds_C = load(dsum_ptr, at_C, mask) if HAS_DSUM else zero_C
        if NORM:
            x_C, dout_C = load(sum_ptr, at_C, mask), load(dout_ptr, at_C, mask)
            centred_C = tl.where(mask, x_C - tl.sum(x_C) / C, 0.0)
            factor = 1 / tl.sqrt(tl.sum(centred_C * centred_C) / C + eps)
            normal_C = centred_C * factor
            dn_C = dout_C * (1 + load(scale_ptr, b * scale_stride + c, c < C))
            pull_C = tl.sum(dn_C) / C + normal_C * (tl.sum(dn_C * normal_C) / C)
            ds_C += tl.where(mask, dn_C - pull_C, 0.0) * factor
            dscale_C += dout_C * normal_C
            dshift_C += dout_C
        tl.store(dx_ptr + at_C, ds_C, mask=mask)
        if ADD:
            dgate_C += ds_C * load(y_ptr, at_C, mask)
            dy_C = ds_C * load(gate_ptr, b * gate_stride + c, c < C)
            tl.store(dy_ptr + at_C, dy_C.to(dy_ptr.dtype.element_ty), mask=mask)
    to = dvectors_ptr + tl.program_id(0).to(tl.int64) * 3 * C + c
    tl.store(to, dgate_C, mask=c < C)
    tl.store(to + C, dscale_C, mask=c < C)
    tl.store(to + 2 * C, dshift_C, mask=c < C)


@triton.jit
def temperature(log_scale_ptr, h):
    return tl.exp(tl.minimum(number(log_scale_ptr, h), LARGEST_LOG_SCALE))


@triton.jit(do_not_specialize=["B", "L"])
def heads_forward(qkv_ptr, log_scale_ptr, out_ptr, length_ptr, B, L, H, TOKENS: tl.constexpr, d: tl.constexpr):
    """(B, L, 3, H, d) -> (3, B, H, L, d): queries of length exp(min(log_scale, log 100)), keys of length 1, and
    values; and the lengths that queries and keys had, (2, B, H, L)."""
    b, start = tl.program_id(0).to(tl.int64) // tl.cdiv(L, TOKENS), tl.program_id(0) % tl.cdiv(L, TOKENS) * TOKENS
    role, h = tl.program_id(1) // H, tl.program_id(1) % H
    t, c = start + tl.arange(0, TOKENS), tl.arange(0, d)
    mask = (t < L)[:, None]
    x_Td = tl.load(qkv_ptr + ((b * L + t)[:, None] * 3 * H + tl.program_id(1)) * d + c[None, :], mask=mask, other=0.0)
    if role < 2:
        exact_Td = x_Td.to(tl.float32)
        length_T = tl.maximum(tl.sqrt(tl.sum(exact_Td * exact_Td, 1)), 1e-12)
        factor_T = (temperature(log_scale_ptr, h) if role == 0 else 1.0) / length_T
        x_Td = (exact_Td * factor_T[:, None]).to(x_Td.dtype)
        tl.store(length_ptr + ((role * B + b) * H + h) * L + t, length_T, mask=t < L)
    tl.store(out_ptr + (((role * B + b) * H + h) * L + t)[:, None] * d + c[None, :], x_Td, mask=mask)


@triton.jit(do_not_specialize=["B", "L"])
def heads_backward(
    dout_ptr, out_ptr, length_ptr, log_scale_ptr, dqkv_ptr, dlog_scale_ptr, B, L, H,
    TOKENS: tl.constexpr, d: tl.constexpr,
):  # fmt: skip
    """dqkv; (images x tiles, H): dlog_scale summed over a program's tokens."""
    b, start = tl.program_id(0).to(tl.int64) // tl.cdiv(L, TOKENS), tl.program_id(0) % tl.cdiv(L, TOKENS) * TOKENS
    role, h = tl.program_id(1) // H, tl.program_id(1) % H
    t, c = start + tl.arange(0, TOKENS), tl.arange(0, d)
    mask = (t < L)[:, None]
    row_T = ((role * B + b) * H + h) * L + t
    dx_Td = load(dout_ptr, row_T[:, None] * d + c[None, :], mask)
    if role < 2:
        length = temperature(log_scale_ptr, h) if role == 0 else 1.0
        unit_Td = load(out_ptr, row_T[:, None] * d + c[None, :], mask) / length
        along_T = tl.sum(dx_Td * unit_Td, 1)
        length_T = tl.load(length_ptr + row_T, mask=t < L, other=1.0)
        dx_Td = (length / length_T)[:, None] * (dx_Td - unit_Td * along_T[:, None])
        if role == 0:
            slope = tl.sum(along_T) * length
            clamped = number(log_scale_ptr, h) > LARGEST_LOG_SCALE
            tl.store(dlog_scale_ptr + tl.program_id(0) * H + h, tl.where(clamped, 0.0, slope))
    at_Td = ((b * L + t)[:, None] * 3 * H + tl.program_id(1)) * d + c[None, :]
    tl.store(dqkv_ptr + at_Td, dx_Td.to(dqkv_ptr.dtype.element_ty), mask=mask)


# --- operators ---


def _strides(*vectors_BC: Tensor | None) -> list[int]:
    return [0 if vector_BC is None else vector_BC.stride(0) for vector_BC in vectors_BC]


def adaln(
    x_BLC: Tensor,
    dtype: torch.dtype,
    eps: float,
    add: tuple[Tensor, Tensor] | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """See `mvar.ops.native.adaln`; differentiable."""
    gate_BC, y_BLC = (None, None) if add is None else (_rows(add[0]), add[1].contiguous())
    scale_BC, shift_BC = (None, None) if norm is None else map(_rows, norm)
    if scale_BC is not None and shift_BC is not None and scale_BC.stride() != shift_BC.stride():
        scale_BC, shift_BC = scale_BC.contiguous(), shift_BC.contiguous()
    return adaln_operator(x_BLC.contiguous(), gate_BC, y_BLC, scale_BC, shift_BC, dtype, eps)


def _rows(vector_BC: Tensor) -> Tensor:
    """The vectors with each image's numbers side by side in memory."""
    return vector_BC if vector_BC.stride(1) == 1 else vector_BC.contiguous()


@torch.library.custom_op("mvar::adaln", mutates_args=())
@on_its_device
def adaln_operator(
    x_BLC: Tensor,
    gate_BC: Tensor | None,
    y_BLC: Tensor | None,
    scale_BC: Tensor | None,
    shift_BC: Tensor | None,
    dtype: torch.dtype,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The sum x + gate y, and its adaptive norm in `dtype`; what is left out gives an empty tensor.

    Gate, scale and shift are float32 like x; their images may lie apart, those of scale and shift equally far.
    """
    B, L, C = x_BLC.shape
    add, norm, width = y_BLC is not None, scale_BC is not None, power(C)
    sum_BLC = torch.empty_like(x_BLC) if add else x_BLC.new_empty(0)
    out_BLC = x_BLC.new_empty((B, L, C) if norm else (0,), dtype=dtype)
    adaln_forward[(B * L,)](
        x_BLC, gate_BC, y_BLC, scale_BC, shift_BC, sum_BLC, out_BLC, L, C, *_strides(gate_BC, scale_BC), eps,
        ADD=add, NORM=norm, WIDTH=width, num_warps=warps(width),
    )  # fmt: skip
    return sum_BLC, out_BLC


@adaln_operator.register_fake
def _(x_BLC, gate_BC, y_BLC, scale_BC, shift_BC, dtype, eps):
    sum_BLC = x_BLC.new_empty(0) if y_BLC is None else torch.empty_like(x_BLC)
    return sum_BLC, x_BLC.new_empty((0,) if scale_BC is None else x_BLC.shape, dtype=dtype)


@torch.library.custom_op("mvar::adaln_backward", mutates_args=())
@on_its_device
def adaln_gradients(
    dsum_BLC: Tensor | None,
    dout_BLC: Tensor | None,
    sum_BLC: Tensor,
    gate_BC: Tensor | None,
    y_BLC: Tensor | None,
    scale_BC: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dy (empty without y), and dgate, dscale, dshift as (B, 3, C)."""
    B, L, C = sum_BLC.shape
    dx_BLC, dvectors_BG3C = torch.empty_like(sum_BLC), sum_BLC.new_empty(B, tiles(L, ROWS), 3, C)
    dy_BLC = sum_BLC.new_empty(0) if y_BLC is None else torch.empty_like(y_BLC)
    width = power(C)
    adaln_backward[(B * tiles(L, ROWS),)](
        dsum_BLC, dout_BLC, sum_BLC, gate_BC, y_BLC, scale_BC, dx_BLC, dy_BLC, dvectors_BG3C,
        L, C, *_strides(gate_BC, scale_BC), eps,
        ADD=y_BLC is not None, NORM=dout_BLC is not None, HAS_DSUM=dsum_BLC is not None,
        ROWS=ROWS, WIDTH=width, num_warps=warps(width),
    )  # fmt: skip
    return dx_BLC, dy_BLC, dvectors_BG3C.sum(1)


@adaln_gradients.register_fake
def _(dsum_BLC, dout_BLC, sum_BLC, gate_BC, y_BLC, scale_BC, eps):
    B, _, C = sum_BLC.shape
    dy_BLC = sum_BLC.new_empty(0) if y_BLC is None else torch.empty_like(y_BLC)
    return torch.empty_like(sum_BLC), dy_BLC, sum_BLC.new_empty(B, 3, C)


def _keep_adaln(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x_BLC, gate_BC, y_BLC, scale_BC, _, _, ctx.eps = inputs
    ctx.save_for_backward(x_BLC if y_BLC is None else output[0], gate_BC, y_BLC, scale_BC)
    ctx.set_materialize_grads(False)


def _differentiate_adaln(ctx: Any, dsum_BLC: Tensor | None, dout_BLC: Tensor | None) -> tuple[Tensor | None, ...]:
    sum_BLC, gate_BC, y_BLC, scale_BC = ctx.saved_tensors
    dsum_BLC = None if dsum_BLC is None or y_BLC is None else dsum_BLC.contiguous()
    dout_BLC = None if dout_BLC is None or scale_BC is None else dout_BLC.contiguous()
    dx_BLC, dy_BLC, dvectors_B3C = adaln_gradients(dsum_BLC, dout_BLC, sum_BLC, gate_BC, y_BLC, scale_BC, ctx.eps)
    dgate_BC, dscale_BC, dshift_BC = dvectors_B3C.unbind(1)
    add = (None, None) if y_BLC is None else (dgate_BC, dy_BLC)
    return dx_BLC, *add, *((None, None) if scale_BC is None else (dscale_BC, dshift_BC)), None, None


adaln_operator.register_autograd(_differentiate_adaln, setup_context=_keep_adaln)


def heads(qkv_BLJHd: Tensor, log_scale_H: Tensor) -> Tensor:
    """Queries of length exp(min(log_scale, log 100)), keys of length 1, and values, (3, B, H, L, d); differentiable."""
    return heads_operator(qkv_BLJHd.contiguous(), log_scale_H.contiguous())[0]


@torch.library.custom_op("mvar::heads", mutates_args=())
@on_its_device
def heads_operator(qkv_BLJHd: Tensor, log_scale_H: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, keys and values as `heads` gives them, and the lengths that queries and keys had, (2, B, H, L).

    The backward pass needs no more than these, of which attention keeps the first anyway.
    """
    B, L, _, H, d = qkv_BLJHd.shape
    out_JBHLd, length_JBHL = qkv_BLJHd.new_empty(3, B, H, L, d), log_scale_H.new_empty(2, B, H, L, dtype=torch.float32)
    heads_forward[(B * tiles(L, TOKENS), 3 * H)](
        qkv_BLJHd, log_scale_H, out_JBHLd, length_JBHL, B, L, H, TOKENS=TOKENS, d=d
    )
    return out_JBHLd, length_JBHL


@heads_operator.register_fake
def _(qkv_BLJHd, log_scale_H):
    B, L, J, H, d = qkv_BLJHd.shape
    return qkv_BLJHd.new_empty(J, B, H, L, d), log_scale_H.new_empty(2, B, H, L, dtype=torch.float32)


@torch.library.custom_op("mvar::heads_backward", mutates_args=())
@on_its_device
def heads_gradients(
    dout_JBHLd: Tensor, out_JBHLd: Tensor, length_JBHL: Tensor, log_scale_H: Tensor
) -> tuple[Tensor, Tensor]:
    """dqkv and dlog_scale."""
    _, B, H, L, d = out_JBHLd.shape
    programs = B * tiles(L, TOKENS)
    dqkv_BLJHd, dlog_scale_GH = out_JBHLd.new_empty(B, L, 3, H, d), length_JBHL.new_empty(programs, H)
    heads_backward[(programs, 3 * H)](
        dout_JBHLd, out_JBHLd, length_JBHL, log_scale_H, dqkv_BLJHd, dlog_scale_GH, B, L, H, TOKENS=TOKENS, d=d
    )
    return dqkv_BLJHd, dlog_scale_GH.sum(0).to(log_scale_H.dtype)


@heads_gradients.register_fake
def _(dout_JBHLd, out_JBHLd, length_JBHL, log_scale_H):
    J, B, H, L, d = out_JBHLd.shape
    return out_JBHLd.new_empty(B, L, J, H, d), torch.empty_like(log_scale_H)


def _keep_heads(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, inputs[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate_heads(ctx: Any, dout_JBHLd: Tensor, _lengths: object) -> tuple[Tensor, Tensor]:
    dqkv_BLJHd, dlog_scale_H = heads_gradients(dout_JBHLd.contiguous(), *ctx.saved_tensors)
    return dqkv_BLJHd, dlog_scale_H


heads_operator.register_autograd(_differentiate_heads, setup_context=_keep_heads)
