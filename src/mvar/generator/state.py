"""What the generator carries from scale to scale, and what a label decides once for all scales.

Shapes: B batch, C width, R AdaLN vectors of a block (3 for each branch).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from torch import Tensor

from mvar.nn.attention import KeyValues
from mvar.ops.mamba import MambaState

Part = TypeVar("Part", KeyValues, MambaState)


@dataclass(frozen=True)
class Modulation:
    """AdaLN vectors for a batch of labels.

    Attributes:
        blocks: one (B, R, C) per block: the gates of its branches, then their scales, then their shifts.
        head_B2C: scale and shift of the head.
        class_embedding_BC: added to the position of the start tokens.
    """

    blocks: tuple[Tensor, ...]
    head_B2C: Tensor
    class_embedding_BC: Tensor

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

    def fork(self, n: int) -> "GeneratorState":
        """Each image n times in a row."""
        return self._map(lambda t: t.repeat_interleave(n, dim=0))

    def select(self, index: Tensor) -> "GeneratorState":
        """The images at these positions (or where a boolean mask is true), in that order."""
        return self._map(lambda t: t[index])

    def _map(self, function: Callable[[Tensor], Tensor]) -> "GeneratorState":
        def each(part: Part | None) -> Part | None:
            return None if part is None else type(part)(*map(function, part))

        return GeneratorState(tuple(BlockState(each(b.attention), each(b.mamba)) for b in self.blocks), self.scales)
