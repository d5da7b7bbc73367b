"""How training may change an image from epoch to epoch: the options and their bounds; standard library only."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from mvar.validation import outside

Augmentation = Literal["shift", "scale", "flip"]

# Small enough that an image stays what it shows. The sizes are mostly below 1, so that little is lost at the edges.
MOST_SHIFT = 0.04  # of the side, up or down and left or right; a pixel where that is less
SIZES = (0.84, 1.06)  # least and largest
FLIPPED = 0.5  # the chance of a mirror image, left to right


def ordered(augment: Sequence[Augmentation]) -> tuple[Augmentation, ...]:
    """Each once, in one order: which was given makes no difference. What is unknown comes last."""
    known: tuple[Augmentation, ...] = get_args(Augmentation)
    return (*(part for part in known if part in augment), *(part for part in augment if part not in known))


def vary(resize_factor: float, augment: Sequence[Augmentation]) -> bool:
    """Whether training sees another view of an image in each epoch."""
    return resize_factor != 1 or len(augment) > 0


def view_problems(config: Any) -> list[str]:
    """What is wrong with the fields `resize_factor` and `augment` of a config, a line each."""
    found = outside(config, ("resize_factor",), lambda value: 1 <= value <= 4, "must lie in [1, 4]")
    known, augment = get_args(Augmentation), config.augment
    if not isinstance(augment, (list, tuple)):
        found.append(f"augment = {augment!r}: give a list of {', '.join(known)}")
    elif unknown := [part for part in augment if part not in known]:
        found.append(f"augment = {unknown[0]!r}: choose from {', '.join(known)}")
    return found
