"""Adaptive layer normalisation: the class decides scale and shift of the normalised tokens.

Shapes: B batch, L tokens, C width.
Source: DiT (Peebles & Xie 2023), section 3.2, as VAR uses it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6
FEW = 8  # images


def adaln(x_BLC: Tensor, scale_B1C: Tensor, shift_B1C: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, without weights of its own.

    Args:
        x_BLC: float32 or float64.
        scale_B1C, shift_B1C: of each image.
        dtype: of the result; x's where None.
    """
    dtype = dtype or x_BLC.dtype
    if torch.is_grad_enabled() or len(x_BLC) > FEW or x_BLC.device.type != "cpu":
        return torch.addcmul(shift_B1C, F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=EPS), 1 + scale_B1C).to(dtype)
    # A few images: as weights of the norm, each image's scale and shift cost no pass of their own.
    y_BLC = torch.empty_like(x_BLC, dtype=dtype)
    for y_LC, x_LC, scale_1C, shift_1C in zip(y_BLC, x_BLC, 1 + scale_B1C, shift_B1C, strict=True):
        y_LC.copy_(F.layer_norm(x_LC, x_LC.shape[-1:], scale_1C[0], shift_1C[0], eps=EPS))
    return y_BLC
