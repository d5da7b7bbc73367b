"""Progress of long passes over files: a bar on a terminal, occasional plain lines when piped."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

EVERY_SECONDS = 20  # between plain lines; shorter passes print none


def track(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield the items, and print to stderr how many of `total` are done, the rate and the time left."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=label, unit_scale=True)
        return
    start = printed = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - printed >= EVERY_SECONDS or (done == total and printed > start):
            left = f", {(total - done) * (now - start) / done:.0f} s left" if done < total else ""
            print(f"{label}: {done} of {total}, {done / (now - start):.3g} a second{left}", file=sys.stderr)
            printed = now
