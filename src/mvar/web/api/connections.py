"""Connections that stall, while they send or while they receive, are closed: each holds a file and memory."""

import asyncio
import sys
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # within which a connection must have sent a request's line and headers
STALLED_SECONDS = 30.0  # after which a client that reads nothing of its answer is cut off


class Prompt(H11Protocol):
    """Ends connections that take too long over a request's head, or read nothing; uvicorn has no limit for either."""

    _head: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing pauses while anything waits for the client
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget("_head")
        self._forget("_reading")

    def pause_writing(self) -> None:
        """Called when more bytes wait for the client than the system takes."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget("_reading")

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget("_head")
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _watch_reading(self) -> None:
        waiting = self.transport.get_write_buffer_size()

        def check() -> None:
            if self.transport.get_write_buffer_size() < waiting:
                self._watch_reading()
            else:
                self.transport.abort()  # close() would first wait for the client to read

        self._reading = self.loop.call_later(STALLED_SECONDS, check)

    def _forget(self, name: str) -> None:
        timer: asyncio.TimerHandle | None = getattr(self, name)
        if timer is not None:
            timer.cancel()
        setattr(self, name, None)


def allow_many() -> None:
    """Let this process have as many connections as the system allows it, where that can be asked for."""
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(ValueError, OSError):  # macOS names no limit and then refuses that
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
