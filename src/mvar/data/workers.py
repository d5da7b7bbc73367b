"""Work on many items at once, in order: in threads, or in processes where Python's lock would be held most of the time.

Processes are those of loky: new interpreters, so that neither a fork meets threads nor a script needs a guarded main
module, as it does for `multiprocessing`.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 4  # items that a worker may be ahead of the consumer
CHUNK = 64  # items sent to a process at once
FEW = 2000  # items that threads have done before processes have started


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None, ahead: int | None = None
) -> Generator[Result, None, None]:
    """Do the work for each item in threads (Pillow decodes outside Python's lock), in order, a bounded number ahead.

    Args:
        threads: how many; None takes one for each processor, 0 works on demand.
        ahead: items; by default AHEAD for each thread.
    """
    if threads == 0:
        yield from map(work, items)
        return
    threads = threads or os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads)
    try:
        yield from _in_order(pool, work, items, ahead or AHEAD * threads)
    finally:
        pool.shutdown(cancel_futures=True)


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None, few: int = FEW
) -> Generator[Result, None, None]:
    """Do the work for each item in processes, in order, a bounded number ahead; an item's exception is raised here.

    Args:
        work: a function of a module, or a `functools.partial` of one, that can be pickled, as can items and results.
        processes: how many; None divides the processors among torchrun's ranks on this machine.
        few: up to this many items are done in threads.

    Raises:
        ChildProcessError: a worker process died, such as for want of memory.
    """
    if len(items) <= few:
        yield from in_threads(work, items)
        return
    from loky import BrokenProcessPool, ProcessPoolExecutor, cpu_count  # only here: most commands do without

    processes = processes or max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if processes == 1:
        yield from in_threads(work, items)
        return
    chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
    environment = {"OMP_NUM_THREADS": "1"}
    pool = ProcessPoolExecutor(processes, env=environment, initializer=_start, initargs=(os.getpid(),))
    try:
        for results in _in_order(pool, partial(_each, work), chunks, AHEAD * processes):
            yield from results
    except BrokenProcessPool as error:
        raise ChildProcessError("a worker process died before its work was done; is there enough memory?") from error
    finally:
        pool.shutdown(kill_workers=True)


def _in_order(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    waiting: deque[Future[Result]] = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _start(parent: int) -> None:
    """Begin a worker process: Ctrl-C is for its parent, and it ends when its parent does, even when that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _each(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [work(item) for item in items]
