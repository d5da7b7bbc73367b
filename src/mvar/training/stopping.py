"""Stopping a run from outside: a signal asks, the loop saves a checkpoint after its step and stops."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # a cluster's preemption, Ctrl-C


class Stopped(Exception):
    """The run stopped where it was asked to, with a checkpoint.

    Attributes:
        code: exit status of the process, 128 and the signal's number; 0 where a callback asked.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Request:
    """Whether someone asked to stop."""

    def __init__(self) -> None:
        self.signal: int = 0
        self.asked = False

    def ask(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Ask; a second signal of a kind ends the process at once."""
        self.asked, self.signal = True, number or self.signal
        if number:
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit for as long as the context lasts, so that temporary files are deleted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_request() -> Iterator[Request]:
    """Catch the signals that ask to stop, for as long as the context lasts; in other threads than the first, none."""
    request = Request()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, request.ask) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
