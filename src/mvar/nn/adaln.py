"""Adaptive layer normalisation: the class decides scale and shift of the normalised tokens.

Shapes: B batch, L tokens, C width.
Source: DiT (Peebles & Xie 2023), section 3.2, as VAR uses it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6


def adaln(x_BLC: Tensor, scale_B1C: Tensor, shift_B1C: Tensor) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, without weights of its own; x in float32 or float64."""
    return torch.addcmul(shift_B1C, F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=EPS), 1 + scale_B1C)
