"""Adaptive LayerNorm with gated sums, and Mamba-2's gated RMSNorm.

Shapes: B batch, L tokens, C width, E inner channels, N = B L tokens of all images.
Source: DiT (Peebles & Xie 2023), section 3.2, as VAR uses it; Mamba-2 (Dao & Gu 2024), section 7.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mvar.ops import native
from mvar.ops.dispatch import runs_kernels, runs_native, runs_reference
from mvar.ops.numerics import without_autocast

ADALN_EPS = 1e-6


def adaln(x_BLC: Tensor, scale_BC: Tensor, shift_BC: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift in this dtype, x's if None; x is float32 or float64."""
    dtype = dtype or x_BLC.dtype
    if (fused := _fused(x_BLC, dtype)) is not None:
        return fused(x_BLC, dtype, ADALN_EPS, norm=(scale_BC, shift_BC))[1]
    normal_BLC = F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=ADALN_EPS)
    return torch.addcmul(shift_BC[:, None], normal_BLC, 1 + scale_BC[:, None]).to(dtype)


def gated_sum(x_BLC: Tensor, gate_BC: Tensor, y_BLC: Tensor) -> Tensor:
    """x + gate * y; y in any float dtype."""
    if (fused := _fused(x_BLC, y_BLC.dtype)) is not None:
        return fused(x_BLC, y_BLC.dtype, ADALN_EPS, add=(gate_BC, y_BLC))[0]
    return torch.addcmul(x_BLC, gate_BC[:, None], y_BLC)


def gated_sum_adaln(
    x_BLC: Tensor, gate_BC: Tensor, y_BLC: Tensor, scale_BC: Tensor, shift_BC: Tensor
) -> tuple[Tensor, Tensor]:
    """The gated sum, and its adaptive norm in y's dtype."""
    if (fused := _fused(x_BLC, y_BLC.dtype)) is not None:
        return fused(x_BLC, y_BLC.dtype, ADALN_EPS, add=(gate_BC, y_BLC), norm=(scale_BC, shift_BC))
    x_BLC = gated_sum(x_BLC, gate_BC, y_BLC)
    return x_BLC, adaln(x_BLC, scale_BC, shift_BC, y_BLC.dtype)


def _fused(x_BLC: Tensor, dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """A pass that adds and normalises at once; None where there is none for these tokens."""
    if x_BLC.shape[-1] % native.LANES or x_BLC.dtype != torch.float32 or dtype not in native.TOKENS:
        return None
    if runs_native(x_BLC):
        return native.adaln
    if runs_kernels(x_BLC, dtype):
        from mvar.ops.gpu.norms import adaln as kernel

        return kernel
    return None


def gated_rms_norm(x_BLE: Tensor, z_BLE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """RMSNorm(x silu(z)) times weight in x's dtype, which z shares, differentiable once; means are at least float32."""
    if runs_reference():
        return gated_rms_norm_reference(x_BLE, z_BLE, weight_E, eps)
    return _GatedNorm.apply(x_BLE, z_BLE, weight_E, eps)


def gated_rms_norm_reference(x_BLE: Tensor, z_BLE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """The definition of `gated_rms_norm`."""
    return F.rms_norm(x_BLE * F.silu(z_BLE), weight_E.shape, weight_E.to(x_BLE.dtype), eps)


class _GatedNorm(torch.autograd.Function):
    """With g = x silu(z), r = 1 / sqrt(mean g^2 + eps), y = r w g and dn = w dy: dg = r (dn - g r^2 mean(dn g)).

    Few passes over memory; the backward pass recomputes the gate.
    """

    @staticmethod
    def forward(ctx: Any, x_BLE: Tensor, z_BLE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
        dtype = x_BLE.dtype
        y_BLE = F.silu(z_BLE).mul_(x_BLE)
        exact = torch.promote_types(dtype, torch.float32)
        length_BL1 = torch.linalg.vector_norm(y_BLE, dim=-1, keepdim=True, dtype=exact)
        factor_BL1 = (length_BL1.square_() / x_BLE.shape[-1] + eps).rsqrt_()
        ctx.save_for_backward(x_BLE, z_BLE, weight_E, factor_BL1)
        return y_BLE.mul_(weight_E.to(dtype)).mul_(factor_BL1.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLE: Tensor) -> tuple[Tensor | None, ...]:
        x_BLE, z_BLE, weight_E, factor_BL1 = ctx.saved_tensors
        E, dtype = len(weight_E), x_BLE.dtype
        low_E, low_BL1 = weight_E.to(dtype), factor_BL1.to(dtype)
        with without_autocast(x_BLE):
            gate_BLE = F.silu(z_BLE)
            gated_BLE = x_BLE * gate_BLE
            slope_NE = (dy_BLE * gated_BLE).flatten(0, 1)
            dweight_E = (low_BL1.view(1, -1) @ slope_NE)[0].to(weight_E.dtype)
            mean_BL1 = (slope_NE @ low_E[:, None]).view_as(factor_BL1) / E
            pull_BL1 = (factor_BL1.square() * mean_BL1).to(dtype)
            dgated_BLE = (dy_BLE * low_E).sub_(gated_BLE.mul_(pull_BL1)).mul_(low_BL1)
            dx_BLE = gate_BLE.mul_(dgated_BLE)
            dz_BLE = torch.ops.aten.silu_backward(dgated_BLE.mul_(x_BLE), z_BLE)
        return dx_BLE, dz_BLE, dweight_E, None
