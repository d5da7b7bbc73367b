"""The linear layer of every projection, and the MLP.

Shapes: B batch, L tokens, C width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mvar.ops.dispatch import recomputes
from mvar.ops.linear import can_prepack, gelu_linear, linear


class Linear(nn.Linear):
    """x W^T + b, computed in the weight's dtype (or autocast's), whatever the input's."""

    def reset_parameters(self) -> None:
        """Zeros: torch's random start would be thrown away, as `mvar.generator.init` or a checkpoint fills weights."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False, after_gelu: bool = False) -> Tensor:
        """x W^T + b, with a bias that is made of parts in place of the layer's own, then GELU if asked.

        With `after_gelu`, of GELU(x), which the backward pass computes again.
        """
        if after_gelu:
            return gelu_linear(x, self.weight, self.bias)
        bias = self.bias if bias is None else bias
        bias = None if bias is None else bias.to(self.weight.dtype)
        return linear(x.to(self.weight.dtype), self.weight, bias, gelu)

    def prepack(self) -> None:
        """Hold the weight in the order that products are fastest with, if this device has one.

        A prepacked weight has no gradient, and cannot be copied, loaded into or moved; `state_dict` has the plain one.
        """
        if can_prepack(self.weight):
            packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), None)
            self.weight = nn.Parameter(packed, requires_grad=False)

    def unpack(self) -> None:
        """Hold the plain weight again."""
        if self.weight.is_mkldnn:
            self.weight = nn.Parameter(self.weight.to_dense())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_mkldnn:  # files hold plain weights
            destination[f"{prefix}weight"] = self.weight.to_dense()


class MLP(nn.Module):
    """Linear, GELU (tanh approximation), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        if recomputes(x_BLC):
            return self.fc2(self.fc1(x_BLC), after_gelu=True)
        return self.fc2(self.fc1(x_BLC, gelu=True))
