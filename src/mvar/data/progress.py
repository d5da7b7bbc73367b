"""Progress of long passes over files: a bar on a terminal, plain lines when piped."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield the items, showing on stderr how many of `total` are done."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=label, unit_scale=True)
        return
    quarter = max(-(-total // 4), 1000)  # small sets are done before anyone would ask
    for done, item in enumerate(items, 1):
        yield item
        if done % quarter == 0 or (done == total and total > quarter):
            print(f"{label}: {done} of {total}", file=sys.stderr)
