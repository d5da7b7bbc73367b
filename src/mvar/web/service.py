"""The models behind the service: a process for each, requests to them, and what happens when one ends.

The service has no state besides requests under way, so any number of replicas can stand behind a load balancer.
"""

import asyncio
import atexit
import multiprocessing
import sys
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from threading import Thread
from time import monotonic
from typing import Any

from mvar.web.messages import Answer, Broken, Busy, Card, Late, Partial, Refused, Request

RESTARTS = 3  # of a process that ends before it has answered anything; then it stays down
STOPPING = 5.0  # seconds that a process has to end by itself
LATEST = 32  # answers by whose times the wait of the next is estimated


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to serve.

    Attributes:
        name: that requests give.
        path: packaged name, bundle or run folder, or owner/name of the hub.
        device, dtype: as `mvar.load` takes them.
    """

    name: str
    path: str
    device: str | None = None
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much the service accepts.

    Attributes:
        waiting: images of each model that may be drawn or wait at once.
        seconds: that a request may take, waiting included.
    """

    waiting: int = 128
    seconds: float = 120.0


@dataclass
class Service:
    """Models by name; requests that name none get the first."""

    sources: list[Source]
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.hosts = {source.name: Host(source, self.limits) for source in self.sources}

    def launch(self) -> None:
        """Start the models' processes before there is an event loop, as they take seconds to be ready."""
        for host in self.hosts.values():
            host.launch()

    async def __aenter__(self) -> "Service":
        for host in self.hosts.values():
            host.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(*(host.stop() for host in self.hosts.values()))

    @property
    def cards(self) -> Mapping[str, Card]:
        """Of the models that are loaded."""
        return {name: host.card for name, host in self.hosts.items() if host.card is not None}

    def card(self, name: str) -> Card:
        """Of a model.

        Raises:
            Broken: it is not loaded yet, or no longer served.
        """
        return self.hosts[name].described()

    @property
    def ready(self) -> bool:
        """Whether all models are loaded."""
        return len(self.cards) == len(self.hosts)

    async def loaded(self) -> None:
        """Wait until all models are.

        Raises:
            ValueError: one that cannot be loaded, and why.
        """
        await asyncio.gather(*(host.loaded() for host in self.hosts.values()))

    def ask(self, model: str, request: Request) -> AsyncGenerator[Partial | Answer, None]:
        """What the model answers, the final answer last; leaving the iteration cancels the request.

        Raises:
            Refused, Busy, Late, Broken: see `mvar.web.messages`.
        """
        return self.hosts[model].ask(request)

    async def answer(self, model: str, request: Request) -> Any:
        """The answer alone."""
        return [found async for found in self.ask(model, request)][-1]


async def together(
    service: Service, model: str, requests: Sequence[Request]
) -> AsyncGenerator[list[tuple[int, Partial | Answer]], None]:
    """All answers, each with its request's place, in the order in which they come: as many at once as there are.

    The first error ends all. Leaving the iteration cancels what is not answered yet. Raises as `Service.ask` does.
    """
    if len(requests) > service.limits.waiting:  # else refused as busy, again and again
        raise Refused(
            f"n = {len(requests)}: this server takes at most {service.limits.waiting} images at once; ask for fewer"
        )
    arrived = asyncio.Queue[tuple[int, Partial | Answer | Exception]]()

    async def follow(i: int, request: Request) -> None:
        try:
            async with aclosing(service.ask(model, request)) as answers:
                async for answer in answers:
                    arrived.put_nowait((i, answer))
        except Exception as error:
            arrived.put_nowait((i, error))

    tasks = [asyncio.create_task(follow(i, request)) for i, request in enumerate(requests)]
    try:
        missing = len(tasks)
        while missing:
            some = [await arrived.get()]
            while not arrived.empty():
                some.append(arrived.get_nowait())
            found: list[tuple[int, Partial | Answer]] = []
            for i, answer in some:
                if isinstance(answer, Exception):
                    raise answer
                found.append((i, answer))
            missing -= sum(not isinstance(answer, Partial) for _, answer in found)
            yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Host:
    """The process of one model, as the service sees it; it is restarted when it ends."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source, self.limits = source, limits
        self.card: Card | None = None
        self.failure: Exception | None = None  # why it stays down
        self.restarts = 0
        self.stopping = False
        self._reason: Exception | None = None  # why the present or latest process cannot load the model
        self._requests: dict[int, asyncio.Queue[Any]] = {}
        self._numbers = count()
        self._answered: deque[float] = deque(maxlen=LATEST)  # when work began, and the latest answers came
        self._changed = asyncio.Event()
        self._fruitless = 0  # processes in a row that ended without an answer
        self._process: BaseProcess | None = None
        self._outgoing = SimpleQueue[list[tuple[int, Request | None]] | None]()
        self._unsent: list[tuple[int, Request | None]] = []
        atexit.register(self._kill)  # multiprocessing's own SIGTERM is ignored

    @property
    def waiting(self) -> int:
        """Requests under way."""
        return len(self._requests)

    @property
    def pid(self) -> int | None:
        """Of its process."""
        return self._process.pid if self._process is not None else None

    def launch(self) -> None:
        """Start the process; its answers are read from `start` on."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        source = self.source
        arguments = (theirs, source.name, source.path, source.device, source.dtype)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def start(self) -> None:
        """Start the process, unless it was launched; its answers arrive in this event loop."""
        if self._process is None:
            self.launch()
        loop = asyncio.get_running_loop()
        self._outgoing = SimpleQueue()
        Thread(target=self._write, args=(self._pipe, self._outgoing), daemon=True).start()
        Thread(target=self._read, args=(self._pipe, loop), daemon=True).start()

    async def stop(self, seconds: float = 10.0) -> None:
        """End the process after its requests, at most these seconds from now."""
        self.stopping = True
        until = monotonic() + seconds
        while self._requests and monotonic() < until:
            await asyncio.sleep(0.02)
        if self._process is not None:
            if self.card is not None:  # while it loads, it does not listen
                self._outgoing.put(None)
                await asyncio.to_thread(self._process.join, STOPPING)
            self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def loaded(self) -> None:
        """See `Service.loaded`."""
        while self.card is None and self.failure is None:
            await self._changed.wait()
            self._changed.clear()
        if self.failure is not None:
            raise self.failure

    def described(self) -> Card:
        """See `Service.card`."""
        if self.failure is not None:
            raise Broken("the model is no longer served; the server's log says why")
        if self.card is None or self.stopping:
            raise Broken("the model is not loaded; try again in a few seconds")
        return self.card

    async def ask(self, request: Request) -> AsyncGenerator[Partial | Answer, None]:
        """See `Service.ask`."""
        self.described()
        if len(self._requests) >= self.limits.waiting:
            raise Busy(self._wait_for(len(self._requests)))
        if not self._requests:
            self._answered.clear()  # earlier times say nothing about the answers to come
            self._answered.append(monotonic())
        number, answers = next(self._numbers), asyncio.Queue[Any]()
        self._requests[number] = answers
        finished = False
        try:
            self._send(number, request)
            async with asyncio.timeout(self.limits.seconds):
                while not finished:
                    found = await answers.get()
                    finished = not isinstance(found, Partial)
                    if isinstance(found, Exception):
                        raise found
                    yield found
        except TimeoutError as error:
            raise Late(f"the request took longer than {self.limits.seconds:g} s") from error
        finally:
            del self._requests[number]
            if not finished:
                self._send(number, None)

    def _send(self, number: int, request: Request | None) -> None:
        """Send a request, or that one is cancelled, in one message with the others of this turn of the event loop.

        So an image that several of them share is sent, and held by the process, only once.
        """
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent.append((number, request))

    def _flush(self) -> None:
        self._outgoing.put(self._unsent)
        self._unsent = []

    def _write(self, pipe: Connection, outgoing: SimpleQueue[Any]) -> None:
        """In a thread, as large images take a while: send what is queued until None, which ends the process too."""
        with suppress(OSError):  # which `_read` sees too
            while (some := outgoing.get()) is not None:
                pipe.send([each for each in some if each[1] is None or each[0] in self._requests])
                del some  # or images stay until the next
            pipe.send(None)

    def _wait_for(self, others: int) -> int:
        """Estimated seconds, rounded up, until so many answers have come, from the times of the latest."""
        if len(self._answered) < 2:
            return 1
        each = (self._answered[-1] - self._answered[0]) / (len(self._answered) - 1)
        return max(1, min(60, round(others * each + 0.5)))

    def _read(self, pipe: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: pass on what the process sends until it ends."""
        with suppress(RuntimeError):  # the event loop has ended
            while True:
                try:
                    said = pipe.recv()
                except (EOFError, OSError):
                    break
                loop.call_soon_threadsafe(self._hear, said)
            loop.call_soon_threadsafe(self._ended)

    def _hear(self, said: Any) -> None:
        if isinstance(said, Card):
            self.card = said
            self._changed.set()
        elif isinstance(said, Exception):
            self._reason = said
        else:
            number, found = said
            if not isinstance(found, Partial):
                self._answered.append(monotonic())
                self._fruitless = 0
            if number in self._requests:
                self._requests[number].put_nowait(found)

    def _ended(self) -> None:
        """The process ended: requests under way fail, and another process starts."""
        self._outgoing.put(None)
        self.card = None
        for answers in self._requests.values():
            answers.put_nowait(Broken("the model's process ended; send the request again"))
        if self.stopping:
            return
        reason, self._reason = self._reason, None
        self._fruitless += 1
        if isinstance(reason, Refused) or self._fruitless > RESTARTS:
            name, times = self.source.name, self._fruitless
            ended = f"the process of {name} ended {times} times in a row without an answer; restart the server"
            self.failure = reason or Broken(ended)
            self._changed.set()
            if self.restarts:  # else the command says so
                print(f"mvar: {self.source.name} is no longer served: {self.failure}", file=sys.stderr)
            return
        self.restarts += 1
        self._process = None
        print(f"mvar: the process of {self.source.name} ended; starting it again", file=sys.stderr)
        self.start()


def _work(*arguments: Any) -> None:
    """What the process runs; only there is torch imported."""
    from mvar.web.worker import main

    main(*arguments)
