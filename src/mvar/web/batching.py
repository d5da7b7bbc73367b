"""Batching across requests: drawings at the same scale share one step of the generator.

Each request has a thread. As soon as a processor is free, the first waiting thread runs the step itself: it takes the
drawings at the coarsest scale, oldest first. Coarse maps cost little, so later requests catch up with earlier ones, and
from there all go on together. Mamba's state has the same size at every scale, so joining and leaving copy little.

Steps and other work (turns) get a processor in order of arrival. A classification takes many turns, one at a time, so
it alternates with the steps of requests that draw, and neither starves.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import Condition
from time import monotonic

import torch

from mvar.sampling.canvas import Canvas
from mvar.sampling.concurrency import through
from mvar.sampling.engine import Drawing, draw_together

CPU_PROCESSORS = 4  # at most; they share all cores, and more of them would split the steps
GRACE = 0.01  # seconds for which a step waits for threads that are about to draw a map too
ROWS = 8  # of a teacher-forced pass
CPU_TOKENS, GPU_TOKENS = 512, 32_768  # of a step: more are hardly faster, and make others wait


@dataclass(eq=False)
class _Waiting:
    age: int = 0  # of the request that draws: the lower, the older
    drawing: Drawing | None = None  # None for a turn
    result: Canvas | BaseException | None = None
    taken: bool = False


@dataclass
class Batcher:
    """Dispatches the work of concurrent requests; see `mvar.sampling.concurrency`.

    Attributes:
        processors: how many steps or turns may run at once.
        tokens: most tokens of a step with several drawings.
        threads: of torch, for each processor; work that runs alone gets those of all processors.
    """

    processors: int
    tokens: int = CPU_TOKENS
    threads: int = 1
    _waiting: list[_Waiting] = field(default_factory=list)  # for a processor, in order of arrival
    _joined: int = 0  # threads inside `joined`
    _settled: int = 0  # of these, threads whose drawing or turn waits or runs
    _busy: int = 0  # processors
    _changed: Condition = field(default_factory=Condition)
    _ages: Iterator[int] = field(default_factory=count)

    @contextmanager
    def joined(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Run the calling thread's work through this batcher.

        `check` is called before each map and each turn, and may raise to stop the call.
        """
        with self._changed:
            self._joined += 1
            age = next(self._ages)
        try:
            with through(_Member(self, age, check)):
                yield
        finally:
            with self._changed:
                self._joined -= 1
                self._changed.notify_all()

    def draw(self, drawing: Drawing, age: int) -> Canvas:
        """The drawing's canvas with one more map."""
        mine = _Waiting(age, drawing)
        with self._changed:
            self._waiting.append(mine)
            self._settle(1)
            while mine.result is None:
                if mine.taken or not self._may_step():
                    self._changed.wait()
                    continue
                self._await_others()
                if mine.result is None and (some := self._next()):
                    self._run(some)
        if isinstance(mine.result, BaseException):
            raise mine.result
        return mine.result

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Holds a processor for work other than drawing."""
        mine = _Waiting()
        with self._changed:
            self._waiting.append(mine)
            self._settle(1)
            self._changed.wait_for(lambda: self._busy < self.processors and self._waiting[0] is mine)
            self._waiting.pop(0)
            try:
                with self._processor():
                    yield
            finally:
                self._settle(-1)

    def _await_others(self) -> None:
        """Give threads that have just got a map, and will ask for the next, a moment to do so."""
        until = monotonic() + GRACE
        while self._joined > self._settled:
            left = until - monotonic()
            if left <= 0 or not self._changed.wait(left):
                break

    def _may_step(self) -> bool:
        """Whether a processor is free and a step is next."""
        return self._busy < self.processors and bool(self._waiting) and self._waiting[0].drawing is not None

    def _next(self) -> list[tuple[_Waiting, Drawing]]:
        """What the next step draws; empty if others took all of it, or the last processor, or if a turn is next."""
        if not self._may_step():
            return []
        drawings = [(each, each.drawing) for each in self._waiting if each.drawing is not None]
        k = min(drawing.canvas.scales for _, drawing in drawings)
        group = [pair for pair in drawings if pair[1].canvas.scales == k]
        group.sort(key=lambda pair: pair[0].age)
        free = self.processors - self._busy
        share = -(-sum(len(drawing.canvas.index) for _, drawing in group) // free)  # images, for each free processor
        area = group[0][1].sampler.generator.schedule.areas[k]
        most = max(1, min(share, self.tokens // area))
        some: list[tuple[_Waiting, Drawing]] = []
        images = 0
        for each, drawing in group:
            images += len(drawing.canvas.index)
            if some and images > most:
                break
            some.append((each, drawing))
            each.taken = True
            self._waiting.remove(each)
        return some

    def _run(self, some: list[tuple[_Waiting, Drawing]]) -> None:
        """Draw one more map of each."""
        found: list[Canvas | FloatingPointError] | BaseException
        with self._processor():
            try:
                found = draw_together([drawing for _, drawing in some])
            except BaseException as error:
                found = error
        for i, (each, _) in enumerate(some):
            each.result = found if isinstance(found, BaseException) else found[i]
        self._settle(-len(some))

    def _settle(self, threads: int) -> None:
        """Count threads that a step need not wait for: more of them, or fewer."""
        self._settled += threads
        self._changed.notify_all()

    @contextmanager
    def _processor(self) -> Iterator[None]:
        """Holds a processor, and releases the lock meanwhile."""
        self._busy += 1
        alone = self._busy == 1 and not self._waiting
        self._changed.notify_all()  # another processor may be free for the next in line
        self._changed.release()
        try:
            torch.set_num_threads(self.threads * self.processors if alone else self.threads)
            yield
        finally:
            self._changed.acquire()
            self._busy -= 1
            self._changed.notify_all()


@dataclass(frozen=True)
class _Member:
    """A batcher as seen by one thread."""

    batcher: Batcher
    age: int
    check: Callable[[], None]
    rows: int = ROWS

    def draw(self, drawing: Drawing) -> Canvas:
        self.check()
        return self.batcher.draw(drawing, self.age)

    def turn(self) -> AbstractContextManager[None]:
        self.check()
        return self.batcher.turn()
