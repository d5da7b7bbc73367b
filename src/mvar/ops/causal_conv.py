"""Causal depthwise convolution over tokens, with its tail as explicit state.

Shapes: B batch, L tokens, D channels, W kernel width, V = W - 1 tokens of the tail, T = V + L.
Source: the short convolution of Mamba (Gu & Dao 2023, section 3.4).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mvar.ops.dispatch import runs_reference
from mvar.ops.numerics import without_autocast


def causal_conv(
    x_BLD: Tensor, weight_DW: Tensor, bias_D: Tensor | None = None, tail_BVD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own kernel; token i sees tokens i-W+1 .. i.

    Args:
        x_BLD: tokens of this call, L >= 1.
        weight_DW: kernel, last tap on the current token; its dtype is the result's.
        bias_D: added to every token.
        tail_BVD: the V = W - 1 tokens before this call; None, at the start of the sequence, means zeros.

    Returns:
        The convolved tokens (B, L, D) and the tail for the next call (B, W - 1, D), so that
        `conv(cat(a, b))` equals `conv(a)` followed by `conv(b, tail of a)` exactly.
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
