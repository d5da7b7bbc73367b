"""How calls from several threads share the machine: their drawings join in one step of the generator.

A call runs by itself unless it is inside `through`. The dispatcher of the web service is `mvar.web.batching.Batcher`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mvar.sampling.canvas import Canvas
    from mvar.sampling.engine import Drawing


class Dispatcher(Protocol):
    """Decides when the work of concurrent calls runs, and what runs together.

    Attributes:
        rows: most rows of a teacher-forced pass, so that other calls wait only briefly.
    """

    @property
    def rows(self) -> int: ...

    def draw(self, drawing: "Drawing") -> "Canvas":
        """The drawing's canvas with one more map; other calls' drawings may share the step."""

    def turn(self) -> AbstractContextManager[object]:
        """Holds a processor for long work other than drawing; may raise to stop the call, as `draw` may."""


_current: ContextVar[Dispatcher | None] = ContextVar("dispatcher", default=None)


@contextmanager
def through(dispatcher: Dispatcher) -> Iterator[None]:
    """Run what this thread draws, encodes, decodes and scores through a dispatcher."""
    token = _current.set(dispatcher)
    try:
        yield
    finally:
        _current.reset(token)


def current_dispatcher() -> Dispatcher | None:
    """The calling thread's dispatcher; None where it runs by itself."""
    return _current.get()


def turn() -> AbstractContextManager[object]:
    """Wrap long work other than drawing in it; see `Dispatcher.turn`."""
    dispatcher = current_dispatcher()
    return nullcontext() if dispatcher is None else dispatcher.turn()
