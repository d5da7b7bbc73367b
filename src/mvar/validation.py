"""How every config and request reports what is wrong with it: all problems at once, a line each."""

from collections.abc import Iterable


def raise_problems(problems: Iterable[str]) -> None:
    """Raise one ValueError that lists every problem on its own line; do nothing when there are none.

    A problem reads "field = value: what is wrong; how to mend it".
    """
    lines = list(problems)
    if lines:
        raise ValueError("\n".join(lines))
