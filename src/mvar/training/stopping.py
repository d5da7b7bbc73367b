"""Stopping a run from outside: after a signal the loop ends its step, saves a checkpoint and stops."""

import signal
import threading
from collections.abc import Iterator
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
        self.code = -1  # exit status; below zero while nobody has asked

    def ask(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Ask to stop; a second signal of the same kind ends the process at once."""
        self.code = max(self.code, 128 + number if number else 0)
        if number:
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


@contextmanager
def stop_request() -> Iterator[Request]:
    """Catch the signals that ask to stop; outside of the main thread Python cannot."""
    request = Request()
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, request.ask) for number in SIGNALS} if in_main_thread else {}
    try:
        yield request
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
