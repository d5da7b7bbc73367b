"""How every config and request reports what is wrong with it: all problems at once, a line each; and the least and the
largest sensible value of every whole number that a user can give.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

MANY = 10**9
# Least and largest value of each whole number, by the name of the option, field or argument. What is large inside
# these bounds may still be too large for the memory at hand, which `mvar.machine.check_memory` refuses.
BOUNDS: dict[str, tuple[int, int]] = {
    # of every kind of command
    "seed": (0, 2**63 - 1),
    "batch_size": (1, 1_000_000),
    "workers": (0, 256),
    "steps": (1, MANY),
    "rounds": (1, 1_000_000),
    "batch": (1, 1_000_000),
    # images asked for
    "n": (1, 1_000_000),
    "per_class": (1, 1_000_000),
    "samples_per_class": (2, 1_000_000),  # two have a distance between them
    "preview_per_class": (1, 100),
    "limit": (1, MANY),
    "val_images": (1, MANY),
    "of": (1, 100_000),
    "keep": (1, 100_000),
    # images and token maps
    "size": (8, 1024),
    "box": (0, 1_000_000),
    "keep_box": (0, 1_000_000),
    "feather": (0, 100_000),
    "views": (1, 1000),
    "shard_images": (1, MANY),
    "top_k": (0, MANY),
    "unguided": (0, 63),
    "fork_at": (0, 63),
    "from_scale": (0, 63),
    "progressive_from": (1, 63),
    "sides": (1, 512),
    # training
    "accumulate": (1, 1_000_000),
    "log_every": (1, MANY),
    "validate_every": (1, MANY),
    "checkpoint_every": (1, MANY),
    "revive_every": (1, MANY),
    "keep_checkpoints": (1, 1_000_000),
    "epochs": (1, 1_000_000),
    # networks
    "depth": (1, 200),
    "width": (0, 65_536),  # 0 is derived from the depth
    "heads": (0, 65_536),  # 0 is derived from the width
    "mlp_ratio": (1, 64),
    "state_size": (1, 4096),
    "num_classes": (0, 1_000_000),  # 0 is a model without classes
    "vocab_size": (1, 2**20),
    "latent_channels": (1, 4096),
    "channels": (1, 4096),
    "multipliers": (1, 64),
    "res_blocks": (1, 64),
    "norm_groups": (1, 4096),
    "phis": (0, 63),  # 0 is one for each scale
    "discriminator_channels": (1, 1024),
}
MOST_DIGITS = 30  # of a whole number in a message


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one ValueError that lists every problem on its own line; do nothing when there are none.

    A problem reads "field = value: what is wrong; how to fix it".
    """
    lines = list(problems)
    if lines:
        raise ValueError("\n".join(lines))


def is_integer(value: object) -> bool:
    """Whether a value is an integer; True, 32.0 and "32" are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given: None stands for one that was left out."""
    return {name: value for name, value in options.items() if value is not None}


def number_problems(values: Mapping[str, Any], section: str = "") -> list[str]:
    """A problem for each number that cannot be used: the first of a list stands for all.

    What stands in `BOUNDS` by its name has to be a whole number within its bounds, every other number finite; other
    values are not looked at.

    Args:
        values: options, fields or arguments by name; lists and lists of lists hold a number in each place.
        section: what the names are called after.
    """
    found: list[str] = []
    for name, value in values.items():
        problems = (
            f"{section}{name} = {_shown(number)}: {problem}"
            for number in _each(value)
            if (problem := _problem(name, number))
        )
        found += islice(problems, 1)
    return found


def outside(
    config: Any, names: Iterable[str], is_inside: Callable[[Any], bool], wanted: str, section: str = ""
) -> list[str]:
    """A problem for each of these fields of a config that lies outside a range; what `number_problems` names is left
    out, as is None.

    Args:
        is_inside: whether a value lies in the range.
        wanted: what is said of the others, such as "must be above 0".
        section: what the names are called after.
    """
    values = given({name: getattr(config, name) for name in names})
    return [
        f"{section}{name} = {value}: {wanted}"
        for name, value in values.items()
        if not number_problems({name: value}) and not is_inside(value)
    ]


def _each(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _each(part)
    else:
        yield value


def _problem(name: str, value: Any) -> str | None:
    if name in BOUNDS:
        least, most = BOUNDS[name]
        if not is_integer(value):
            return "must be an integer"
        return None if least <= value <= most else f"must lie in {least} to {most:,}"
    number = isinstance(value, (int, float))
    return "must be a finite number" if number and not abs(value) <= sys.float_info.max else None


def _shown(value: Any) -> str:
    """A value in a message; Python refuses to print whole numbers of thousands of digits."""
    if not is_integer(value) or abs(value) < 10**MOST_DIGITS:
        return repr(value)
    return f"about {'-' if value < 0 else ''}10**{math.log10(abs(value)):.0f}"
