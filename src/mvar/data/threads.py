"""Loading many files at once."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
AHEAD = 4  # items a thread may be ahead of the one who takes them


def in_threads(
    load: Callable[[Item], Loaded], items: Iterable[Item], threads: int | None = None
) -> Generator[Loaded, None, None]:
    """Load items in threads (Pillow decodes outside the interpreter's lock), in order, a bounded number ahead.

    Args:
        threads: how many; None takes one for each processor.
    """
    threads = threads or os.cpu_count() or 1
    waiting: deque[Future[Loaded]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
