"""What the generator carries from scale to scale, and what a label decides once for all scales.

Shapes: B batch, C width, R AdaLN vectors of a block (3 for each branch).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor
from torch.utils._pytree import tree_map_only

from mvar.nn.attention import KeyValues
from mvar.ops.mamba import MambaState


@dataclass(frozen=True)
class Modulation:
    """AdaLN vectors for a batch of labels."""

    blocks: tuple[Tensor, ...]  # one (B, R, C) per block: gates of its branches, then their scales, then their shifts
    head_B2C: Tensor  # scale and shift
    class_embedding_BC: Tensor  # added to the position of the start tokens

    def select(self, index: Tensor) -> "Modulation":
        """The labels at these positions, in that order."""
        blocks = tuple(block_BRC[index] for block_BRC in self.blocks)
        return Modulation(blocks, self.head_B2C[index], self.class_embedding_BC[index])


class BlockState(NamedTuple):
    """What one block carries; None for a mixer that it lacks or that has seen nothing yet."""

    attention: KeyValues | None = None
    mamba: MambaState | None = None


@dataclass(frozen=True)
class GeneratorState:
    """All blocks' states after the first `scales` scales: plain tensors, images along their first dimension."""

    blocks: tuple[BlockState, ...]
    scales: int = 0

    def select(self, index: Tensor) -> "GeneratorState":
        """The images at these positions (or where a boolean mask is true), in that order."""
        return replace(self, blocks=tree_map_only(Tensor, lambda t: t[index], self.blocks))
