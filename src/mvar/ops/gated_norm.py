"""RMSNorm of tokens times a gate, with a backward pass of few passes over memory.

Shapes: B batch, L tokens, E channels, N = B L tokens of all images.
Source: the gated norm of Mamba-2 (Dao & Gu 2024), section 7; Zhang & Sennrich 2019, "Root Mean Square Layer
Normalization".

With g = x silu(z), r = 1 / sqrt(mean g^2 + eps) and y = r w g, the slope dn = w dy of the normalised tokens gives
dg = r (dn - g r^2 mean(dn g)).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mvar.ops.precision import without_autocast


def gated_rms_norm(x_BLE: Tensor, z_BLE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """RMSNorm(x silu(z)) times weight, differentiable (once); the gate is computed again in the backward pass.

    Args:
        x_BLE: tokens; their dtype is the result's. Only means and lengths are at least float32.
        z_BLE: gates before their SiLU, of the same dtype.
        weight_E: of any float dtype.
        eps: added to the mean square.
    """
    return _GatedNorm.apply(x_BLE, z_BLE, weight_E, eps)


def gated_rms_norm_reference(x_BLE: Tensor, z_BLE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """The definition; arguments and result as `gated_rms_norm`."""
    return F.rms_norm(x_BLE * F.silu(z_BLE), weight_E.shape, weight_E, eps)


class _GatedNorm(torch.autograd.Function):
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
