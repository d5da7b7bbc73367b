"""Work in processes, for what holds Python's lock most of its time: many small files.

The workers are new interpreters that talk through pipes. So there is no fork, which threads do not bear, and a script
that calls this needs no guarded main module, as `multiprocessing` would.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from queue import SimpleQueue
from typing import TypeVar

from mvar.data.threads import in_threads

Item = TypeVar("Item")
Result = TypeVar("Result")
CHUNK = 64  # items sent at once
FEW = 2000  # items that are done before the workers have started


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None, few: int = FEW
) -> Generator[Result, None, None]:
    """Do the work for each item, in order, a bounded number ahead; what it raises is raised here.

    Args:
        work: a function of a module, or a `functools.partial` of one, that can be pickled, as can its results.
        items: what it is called with.
        processes: how many; None takes one for each processor that this process may use, which torchrun's ranks on a
            machine share.
        few: at most so many items are done in threads.

    Raises:
        ChildProcessError: a worker ended, such as for want of memory.
    """
    processes = processes or max(1, _processors() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    if len(items) <= few or processes == 1:
        yield from in_threads(work, items)
        return
    idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

    def call(chunk: Sequence[Item]) -> list[Result]:
        worker = idle.get()
        try:
            pickle.dump((work, chunk), worker.stdin)  # type: ignore[arg-type]
            worker.stdin.flush()  # type: ignore[union-attr]
            results, error = pickle.load(worker.stdout)  # type: ignore[arg-type]
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise ChildProcessError("a worker process ended before its work; is there enough memory?") from error
        finally:
            idle.put(worker)
        if error is not None:
            raise error
        return list(results)

    with ExitStack() as stack:
        for _ in range(processes):
            idle.put(stack.enter_context(_worker()))
        chunks = [items[i : i + CHUNK] for i in range(0, len(items), CHUNK)]
        results = in_threads(call, chunks, processes)
        stack.callback(results.close)  # before the pipes close: no thread shall wait for a worker that is gone
        for done in results:
            yield from done


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _worker() -> "subprocess.Popen[bytes]":
    """A new interpreter that serves; it ends when its input does, also when this process is killed."""
    return subprocess.Popen(
        [sys.executable, "-c", "from mvar.data.processes import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the main process
    )


def serve() -> None:
    """What a worker does: read a function and items, write the results, until there are no more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the work prints is no answer
    while True:
        try:
            work, chunk = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = [work(item) for item in chunk], None
        except Exception as error:
            answer = None, error  # type: ignore[assignment]
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:
            return
