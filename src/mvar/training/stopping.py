"""Stopping a run from outside: after a signal the loop ends its step, saves a checkpoint and stops."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # a cluster's preemption, Ctrl-C


class Stopped(Exception):
    """The run stopped when asked to, with a checkpoint.

    Attributes:
        code: exit status of the process: 128 plus the signal's number, or 0 where a callback asked.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Request:
    """A request to stop, on this rank."""

    def __init__(self) -> None:
        self.code: int | None = None  # exit status; None while nobody has asked

    def ask(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Ask to stop; a second signal of the same kind ends the process at once."""
        if number:
            self.code = 128 + number
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        else:
            self.code = self.code or 0


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit within the context, so that temporary files are deleted."""
    with _handled([signal.SIGTERM], lambda number, _: sys.exit(128 + number)):
        yield


@contextmanager
def stop_request() -> Iterator[Request]:
    """Catch the signals that ask to stop."""
    request = Request()
    with _handled(SIGNALS, request.ask):
        yield request


@contextmanager
def _handled(signals: Sequence[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle signals within the context; outside of the main thread Python cannot."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in signals} if in_main_thread else {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
