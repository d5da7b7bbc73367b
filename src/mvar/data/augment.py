"""The options of augmentation and their bounds; without torch, since settings need them."""

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from mvar.settings import Real

Augmentation = Literal["shift", "scale", "flip"]
ResizeFactor = Annotated[float, Real(1, 4)]

# Small enough that an image stays what it shows. The sizes are mostly below 1, so that little is lost at the edges.
MOST_SHIFT = 0.04  # of the side, up or down and left or right; a pixel where that is less
SIZES = (0.84, 1.06)  # least and largest
FLIPPED = 0.5  # the chance of a mirror image, left to right


def ordered(augment: Sequence[Augmentation]) -> tuple[Augmentation, ...]:
    """Each augmentation once, in a fixed order."""
    return tuple(part for part in get_args(Augmentation) if part in augment)


def vary(resize_factor: float, augment: Sequence[Augmentation]) -> bool:
    """Whether training sees another view of an image in each epoch."""
    return resize_factor != 1 or len(augment) > 0
