"""The MLP of a block.

Shapes: B batch, L tokens, C width, M hidden width.
Source: VAR (Tian et al. 2024), appendix.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from mvar.nn.linear import Linear
from mvar.ops.precision import without_autocast


class MLP(nn.Module):
    """Linear, GELU (tanh approximation), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        hidden_BLM = self.fc1(x_BLC)
        with without_autocast(x_BLC):  # on a CPU it would cast to float32 and back
            hidden_BLM = F.gelu(hidden_BLM, approximate="tanh")
        return self.fc2(hidden_BLM)
