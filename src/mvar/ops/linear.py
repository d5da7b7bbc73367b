"""x W^T + b with weights in the order in which a CPU's bfloat16 units read them, and GELU while the result is at hand.

Without it every product orders its weights anew, which for a scale of few tokens takes longer than the product itself.

Source: oneDNN's weight prepacking and post-operations, by the operators that torch's own compiler calls.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mvar.ops import native
from mvar.ops.precision import without_autocast


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x W^T + b, then GELU (tanh approximation) where asked.

    Args:
        x: (..., in), of the weight's dtype.
        weight: (out, in), plain or as `arranged` gives it; the latter has no gradient.
        bias: (out,).
        gelu: whether to apply it.
    """
    if weight.is_mkldnn:
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("linear: an arranged weight is for drawing and has no gradient; use torch.no_grad()")
        post, algorithm = ("gelu", "tanh") if gelu else ("none", "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, post, [], algorithm)
    y = F.linear(x, weight, bias)
    if gelu and y.shape[-1] % native.LANES == 0 and native.takes(y):
        return native.gelu_(y)
    if gelu:
        with without_autocast(y):  # on a CPU it would cast to float32 and back
            y = F.gelu(y, approximate="tanh")
    return y


def can_arrange(weight: Tensor) -> bool:
    """Whether `arranged` takes this weight here: bfloat16 on a CPU that multiplies it."""
    return (
        weight.device.type == "cpu"
        and not weight.is_mkldnn
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def arranged(weight: Tensor) -> Tensor:
    """The weight as `linear` multiplies with it fastest; `to_dense()` gives back the plain one, bit for bit."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
