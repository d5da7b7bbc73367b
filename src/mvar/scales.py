"""The schedule of scales: which token maps an image has, coarse to fine, and where each lies in the sequence.

Source: VAR (Tian et al. 2024), section 3.2. Nothing here needs torch, so configs can use it.
"""

import builtins
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Annotated, Union

from mvar.settings import Whole

# The schedules of the public 256 px and 512 px models.
SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)

MOST_SCALES = 64

# One scale's side as users write it: 8 for an 8x8 map, or (h, w).
Side = Union[int, Sequence[int]]  # noqa: UP007

# Of both networks.
Sides = Annotated[list[Side], Whole(1, 512)]
VocabSize = Annotated[int, Whole(1, 2**20)]
LatentChannels = Annotated[int, Whole(1, 4096)]


@dataclass(frozen=True, init=False)
class ScaleSchedule:
    """The K token maps of an image; scale k is shapes[k] = (h_k, w_k) tokens.

    Tokens are ordered scale by scale, coarse to fine, raster inside a scale.
    """

    shapes: tuple[tuple[int, int], ...]

    def __init__(self, sides: Iterable[Side]) -> None:
        """Args:
            sides: one entry per scale, an int p for a p x p map or a pair (h, w).

        Raises:
            ValueError: no scales or too many, a side below 1, or a map smaller than the one before it.
        """
        shapes = tuple(_shape(side) for side in sides)
        if not shapes:
            raise ValueError("sides is empty: give at least one scale, for example 1 2 3 4")
        if len(shapes) > MOST_SCALES:
            raise ValueError(f"sides has {len(shapes)} scales: give at most {MOST_SCALES}")
        for before, after in pairwise(shapes):
            if after[0] < before[0] or after[1] < before[1]:
                raise ValueError(f"sides must grow from coarse to fine, but {after} follows {before}")
        object.__setattr__(self, "shapes", shapes)

    def __len__(self) -> int:
        """The number of scales K."""
        return len(self.shapes)

    @cached_property
    def areas(self) -> tuple[int, ...]:
        """Tokens of each scale, h_k * w_k."""
        return tuple(h * w for h, w in self.shapes)

    @property
    def length(self) -> int:
        """Tokens of all scales, L."""
        return sum(self.areas)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """K + 1 numbers: scale k is tokens offsets[k] to offsets[k + 1]."""
        return (0, *accumulate(self.areas))

    def slice(self, k: int) -> builtins.slice:
        """Where the tokens of scale k lie in the sequence."""
        return slice(self.offsets[k], self.offsets[k + 1])

    def span(self, scales: range) -> builtins.slice:
        """Where the tokens of consecutive scales lie in the sequence."""
        return slice(self.offsets[scales.start], self.offsets[scales.stop])

    @cached_property
    def level_ids(self) -> tuple[int, ...]:
        """The scale of each of the L tokens."""
        return tuple(k for k, area in enumerate(self.areas) for _ in range(area))

    @property
    def sides(self) -> list[Side]:
        """The schedule as users write it: ints for square maps, [h, w] for others."""
        return [h if h == w else [h, w] for h, w in self.shapes]


def side_problems(sides: Sequence[Side]) -> list[str]:
    """What is wrong with the sides of a config, in a line."""
    try:
        ScaleSchedule(sides)
    except ValueError as error:
        return [f"sides = {sides}: {error}"]
    return []


def _shape(side: Side) -> tuple[int, int]:
    try:
        h, w = (side, side) if isinstance(side, int) else side
    except (TypeError, ValueError):
        h = w = 0
    if not all(type(n) is int and n >= 1 for n in (h, w)):  # True is no side
        raise ValueError(f"sides has {side!r}: a side is an integer >= 1 or a pair (height, width) of them")
    return h, w
