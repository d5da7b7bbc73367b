"""Batching across requests: threads whose next maps are of the same scale draw them with one step of the generator.

A thread that waits does the work itself as soon as a processor is free: it takes the drawings of the coarsest scale,
the oldest first. So later requests catch up with earlier ones, as coarse maps cost little, and from there all go on
together. Mamba's state has the same size at every scale, so that joining and leaving copy little.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import count
from threading import Condition
from time import monotonic

import torch

from mvar.sampling.canvas import Canvas
from mvar.sampling.company import keeping
from mvar.sampling.engine import Drawing, draw_together

PATIENCE = 0.01  # seconds for which a step waits for those who are about to draw a map too
ROWS = 8  # of a teacher-forced pass
CPU_TOKENS, GPU_TOKENS = 512, 32_768  # drawn at once: more are hardly quicker, but make others wait


@dataclass(eq=False)
class _Waiting:
    age: int  # of the request: the lower, the older
    drawing: Drawing
    result: Canvas | BaseException | None = None
    taken: bool = False


@dataclass
class Batcher:
    """The company of requests in several threads; see `mvar.sampling.company`.

    Attributes:
        processors: how many steps may run at once; each then has one of torch's threads.
        tokens: drawn at once in a step, at most, where there are several drawings.
    """

    processors: int
    tokens: int = CPU_TOKENS
    steps: int = 0  # of the generator, so far
    maps: int = 0  # drawn in them, over all images
    _waiting: list[_Waiting] = field(default_factory=list)
    _present: int = 0  # threads inside `joined`
    _settled: int = 0  # of these, threads whose drawing or turn is under way
    _busy: int = 0  # processors
    _turns: deque[int] = field(default_factory=deque)  # of threads that wait for a processor
    _changed: Condition = field(default_factory=Condition)
    _ages: Iterator[int] = field(default_factory=count)

    @contextmanager
    def joined(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """What the calling thread does within it is done in this company.

        `check` is called before each map and each turn, and may raise to stop the call.
        """
        with self._changed:
            self._present += 1
            age = next(self._ages)
        try:
            with keeping(_Member(self, age, check)):
                yield
        finally:
            with self._changed:
                self._present -= 1
                self._changed.notify_all()

    def draw(self, drawing: Drawing, age: int) -> Canvas:
        """The drawing's canvas with one more map."""
        mine = _Waiting(age, drawing)
        with self._changed:
            self._waiting.append(mine)
            self._settle(1)
            while mine.result is None:
                if mine.taken or self._busy >= self.processors or self._turns:
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
        """A processor for other work than drawing; those who wait for one get it in order, before the next step."""
        with self._changed:
            ticket = next(self._ages)
            self._turns.append(ticket)
            self._settle(1)
            self._changed.wait_for(lambda: self._busy < self.processors and self._turns[0] == ticket)
            self._turns.popleft()
            try:
                with self._processor():
                    yield
            finally:
                self._settle(-1)

    def _await_others(self) -> None:
        """Give those who have just got a map, and will ask for the next, a moment to do so."""
        until = monotonic() + PATIENCE
        while self._present > self._settled and not self._turns:
            left = until - monotonic()
            if left <= 0 or not self._changed.wait(left):
                break

    def _next(self) -> list[_Waiting]:
        """What the next step draws; nothing if others have taken all, or the last processor."""
        if not self._waiting or self._busy >= self.processors or self._turns:
            return []
        k = min(each.drawing.canvas.scales for each in self._waiting)
        group = sorted((each for each in self._waiting if each.drawing.canvas.scales == k), key=lambda each: each.age)
        free = self.processors - self._busy
        share = -(-sum(len(each.drawing.canvas.index) for each in group) // free)  # images, for each free processor
        area = group[0].drawing.sampler.generator.schedule.areas[k]
        most = max(1, min(share, self.tokens // area))
        some: list[_Waiting] = []
        images = 0
        for each in group:
            images += len(each.drawing.canvas.index)
            if some and images > most:
                break
            some.append(each)
        for each in some:
            each.taken = True
            self._waiting.remove(each)
        return some

    def _run(self, some: list[_Waiting]) -> None:
        """Draw these."""
        found: list[Canvas | FloatingPointError] | BaseException
        with self._processor():
            try:
                found = draw_together([each.drawing for each in some])
            except BaseException as error:
                found = error
        self.steps += 1
        self.maps += sum(len(each.drawing.canvas.index) for each in some)
        for i, each in enumerate(some):
            each.result = found if isinstance(found, BaseException) else found[i]
        self._settle(-len(some))

    def _settle(self, threads: int) -> None:
        """Nobody needs to wait for so many threads more, or fewer."""
        self._settled += threads
        self._changed.notify_all()

    @contextmanager
    def _processor(self) -> Iterator[None]:
        """With a processor, and without the lock in between."""
        self._busy += 1
        alone = self._busy == 1 and not self._waiting and not self._turns
        self._changed.release()
        try:
            torch.set_num_threads(self.processors if alone else 1)
            yield
        finally:
            self._changed.acquire()
            self._busy -= 1
            self._changed.notify_all()


@dataclass(frozen=True)
class _Member:
    """A batcher as the company of one thread."""

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
