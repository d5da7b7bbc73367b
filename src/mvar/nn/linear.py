"""The linear layer of every projection: input in any float dtype, zero until initialised or loaded.

Source: PyTorch's own, less the random start that a loader would throw away.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """x W^T + b, computed in the weight's dtype (or autocast's), whatever the input's."""

    def reset_parameters(self) -> None:
        """Zeros; `mvar.generator.init` draws the real start."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Args:
        x: (..., in_features).
        bias: used in place of the layer's own, for a bias that is made of parts.
        """
        bias = self.bias if bias is None else bias
        return F.linear(x.to(self.weight.dtype), self.weight, None if bias is None else bias.to(self.weight.dtype))
