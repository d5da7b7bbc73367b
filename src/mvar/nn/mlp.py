"""The MLP of a block.

Shapes: B batch, L tokens, C width, M hidden width.
Source: VAR (Tian et al. 2024), appendix.
"""

from torch import Tensor, nn

from mvar.nn.linear import Linear


class MLP(nn.Module):
    """Linear, GELU (tanh approximation), Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) -> (B, L, C)."""
        return self.fc2(self.fc1(x_BLC, gelu=True))
