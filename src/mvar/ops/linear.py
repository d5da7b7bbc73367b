"""Linear layers and convolutions with what follows them in the same pass, and weights in oneDNN's own order.

A CPU's bfloat16 product otherwise reorders its weights each time, which takes longer than the product of a few tokens.
The operators are those that torch's own compiler calls.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mvar.ops import native
from mvar.ops.dispatch import runs_native, runs_reference
from mvar.ops.numerics import product_dtype, without_autocast


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x W^T + b, then GELU (tanh approximation) if asked; x of the weight's dtype, the weight plain or prepacked."""
    if weight.is_mkldnn:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("linear: a prepacked weight has no gradient; use torch.no_grad()")
        post, algorithm = ("gelu", "tanh") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, post, [], algorithm)
    y = F.linear(x, weight, bias)
    if not gelu:
        return y
    if y.shape[-1] % native.LANES == 0 and runs_native(y):
        return native.gelu_(y)
    with without_autocast(y):  # on a CPU it would cast to float32 and back
        return F.gelu(y, approximate="tanh")


def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU(x) W^T + b, of which the backward pass keeps x alone; differentiable once."""
    dtype = product_dtype(weight)
    with without_autocast(x):
        return _GeluLinear.apply(x.to(dtype), weight.to(dtype), bias.to(dtype))


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x, approximate="tanh"), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        with without_autocast(x):
            dx = torch.ops.aten.gelu_backward(dy @ weight, x, approximate="tanh")
            dy_NC, dweight = dy.flatten(0, -2), None
            if ctx.needs_input_grad[1]:
                dweight = dy_NC.T @ F.gelu(x, approximate="tanh").flatten(0, -2)
            return dx, dweight, dy_NC.sum(0) if ctx.needs_input_grad[2] else None


def convolution_relu(x_BChw: Tensor, convolution: nn.Conv2d) -> Tensor:
    """max(convolution(x), 0) without a gradient, for zero padding; in bfloat16 on a CPU one pass."""
    c = convolution
    if can_prepack(c.weight):
        return torch.ops.mkldnn._convolution_pointwise(
            x_BChw, c.weight, c.bias, c.padding, c.stride, c.dilation, c.groups, "relu", [], None
        )
    return c(x_BChw).relu_()


def can_prepack(weight: Tensor) -> bool:
    """Whether oneDNN's bfloat16 operators take this plain weight: on a CPU that multiplies bfloat16."""
    return (
        weight.device.type == "cpu"
        and not weight.is_mkldnn
        and weight.dtype == torch.bfloat16
        and not runs_reference()
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
