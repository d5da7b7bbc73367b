"""How every config and request reports what is wrong with it: all problems at once, a line each."""

from collections.abc import Iterable
from typing import Any


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one ValueError that lists every problem on its own line; do nothing when there are none.

    A problem reads "field = value: what is wrong; how to mend it".
    """
    lines = list(problems)
    if lines:
        raise ValueError("\n".join(lines))


def is_integer(value: object) -> bool:
    """Whether a value is an integer; True, 32.0 and "32" are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def integer_problems(config: Any, section: str, names: Iterable[str]) -> list[str]:
    """A problem for each of these fields of a config that is not an integer."""
    return [
        f"{section}.{name} = {value!r}: must be an integer"
        for name in names
        if not is_integer(value := getattr(config, name))
    ]
