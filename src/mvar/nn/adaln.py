"""Adaptive layer normalisation and gated sums: the class decides scale, shift and gate of the tokens.

Shapes: B batch, L tokens, C width.
Source: DiT (Peebles & Xie 2023), section 3.2, as VAR uses it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mvar.ops import native

EPS = 1e-6


def adaln(x_BLC: Tensor, scale_BC: Tensor, shift_BC: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, without weights of its own.

    Args:
        x_BLC: float32 or float64.
        scale_BC, shift_BC: of each image.
        dtype: of the result; x's where None.
    """
    dtype = dtype or x_BLC.dtype
    if _native_takes(x_BLC, dtype):
        return native.adaln(x_BLC, scale_BC, shift_BC, dtype, EPS)[1]
    normal_BLC = F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=EPS)
    return torch.addcmul(shift_BC[:, None], normal_BLC, 1 + scale_BC[:, None]).to(dtype)


def gated_sum(x_BLC: Tensor, gate_BC: Tensor, y_BLC: Tensor) -> Tensor:
    """x + gate * y; y in any float dtype."""
    if _native_takes(x_BLC, y_BLC.dtype):
        return native.gated_sum(x_BLC, gate_BC, y_BLC)
    return torch.addcmul(x_BLC, gate_BC[:, None], y_BLC)


def gated_sum_adaln(
    x_BLC: Tensor, gate_BC: Tensor, y_BLC: Tensor, scale_BC: Tensor, shift_BC: Tensor
) -> tuple[Tensor, Tensor]:
    """The gated sum, and its adaptive norm in y's dtype."""
    if _native_takes(x_BLC, y_BLC.dtype):
        return native.adaln(x_BLC, scale_BC, shift_BC, y_BLC.dtype, EPS, add=(gate_BC, y_BLC))
    x_BLC = torch.addcmul(x_BLC, gate_BC[:, None], y_BLC)
    return x_BLC, adaln(x_BLC, scale_BC, shift_BC, y_BLC.dtype)


def _native_takes(x_BLC: Tensor, dtype: torch.dtype) -> bool:
    whole = x_BLC.shape[-1] % native.LANES == 0
    return whole and x_BLC.dtype == torch.float32 and dtype in native.TOKENS and native.takes(x_BLC)
