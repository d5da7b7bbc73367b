"""The linear layer of every projection: input in any float dtype, zero until initialised or loaded.

Source: PyTorch's own, less the random start that a loader would throw away.
"""

from typing import Any

from torch import Tensor, nn

from mvar.ops.linear import arranged, can_arrange, linear


class Linear(nn.Linear):
    """x W^T + b, computed in the weight's dtype (or autocast's), whatever the input's."""

    def reset_parameters(self) -> None:
        """Zeros; `mvar.generator.init` draws the real start."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """Args:
        x: (..., in_features).
        bias: used in place of the layer's own, for a bias that is made of parts.
        gelu: apply GELU (tanh approximation) to the result.
        """
        bias = self.bias if bias is None else bias
        bias = None if bias is None else bias.to(self.weight.dtype)
        return linear(x.to(self.weight.dtype), self.weight, bias, gelu)

    def arrange(self, fast: bool) -> None:
        """Hold the weight in the order that products are fastest with, where this device has one, or plainly again.

        An arranged weight is for drawing only: it has no gradient, and cannot be copied, pickled, loaded into, or moved
        to another device or dtype; `state_dict` gives the plain one.
        """
        if fast and can_arrange(self.weight):
            self.weight = nn.Parameter(arranged(self.weight), requires_grad=False)
        elif not fast and self.weight.is_mkldnn:
            self.weight = nn.Parameter(self.weight.to_dense())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_mkldnn:  # files hold plain weights
            destination[f"{prefix}weight"] = self.weight.to_dense()
