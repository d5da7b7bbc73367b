"""How calls of several threads share the machine: together they draw with one step of the generator.

A call is alone unless it runs inside `keeping`. `mvar.web.batching` has the company that a server keeps.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mvar.sampling.canvas import Canvas
    from mvar.sampling.engine import Drawing


class Company(Protocol):
    """Those whose calls run at the same time.

    Attributes:
        rows: that a teacher-forced pass has at most, so that others wait a short time only.
    """

    @property
    def rows(self) -> int: ...

    def draw(self, drawing: "Drawing") -> "Canvas":
        """The drawing's canvas with one more map; others' may be drawn in the same step."""

    def turn(self) -> AbstractContextManager[object]:
        """Within it, the calling thread may use a processor for long work; it may raise to stop, as `draw` may."""


_present: ContextVar[Company | None] = ContextVar("company", default=None)


@contextmanager
def keeping(company: Company) -> Iterator[None]:
    """Within it, what this thread draws, encodes, decodes and scores is done in this company."""
    token = _present.set(company)
    try:
        yield
    finally:
        _present.reset(token)


def present() -> Company | None:
    """The company of the calling thread; None where it is alone."""
    return _present.get()


def turn() -> AbstractContextManager[object]:
    """What long work other than drawing is done in; see `Company.turn`."""
    company = present()
    return nullcontext() if company is None else company.turn()
