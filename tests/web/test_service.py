"""Many requests at once, and processes that end: what is sent, cancelled, refused, and when a host gives up."""

import asyncio
import pickle
from contextlib import aclosing, suppress
from multiprocessing import Pipe
from queue import SimpleQueue
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image

from mvar.model import load
from mvar.web import worker
from mvar.web.messages import Broken, Busy, Drawing, Editing, Failed, Partial, Refused, Scored, Scoring, Varying
from mvar.web.service import RESTARTS, Host, Limits, Service, Source, together


class Slow:
    """A service that says one thing about each request, and then waits; of label 7 it refuses to go on."""

    limits = Limits()

    def __init__(self):
        self.cancelled = set()

    async def ask(self, model, request):
        try:
            yield Partial(request.index, None)
            if request.label == 7:
                raise Refused("no")
            await asyncio.sleep(3600)
        finally:
            self.cancelled.add(request.index)


@pytest.mark.parametrize("label", [0, 7])
def test_leaving_or_an_error_cancels_all(label):
    async def run():
        service, seen = Slow(), set()
        requests = [Drawing(label=label if i == 1 else 0, seed=0, index=i) for i in range(3)]
        async with aclosing(together(service, "m", requests)) as answers:
            async for some in answers:
                seen |= {i for i, _ in some}
                if label == 0 and len(seen) == 3:
                    break
        await asyncio.sleep(0)
        return service.cancelled, seen

    if label == 7:
        with pytest.raises(Refused):
            asyncio.run(run())
    else:
        assert asyncio.run(run()) == ({0, 1, 2}, {0, 1, 2})


def test_how_long_to_wait_follows_from_the_work_that_is_under_way(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mvar.web.service.monotonic", lambda: now[0])

    async def anyone(host: Host) -> list:
        return [answer async for answer in host.ask(None)]

    async def run() -> list[int]:
        host = Host(Source(name="m", path="m"), Limits(waiting=10))
        host.card, host._outgoing, waits = object(), SimpleQueue(), []
        for idle in (0, 1000):
            now[0] += idle
            tasks = [asyncio.create_task(anyone(host)) for _ in range(10)]
            await asyncio.sleep(0)
            with pytest.raises(Busy) as busy:  # nothing is known yet
                await anyone(host)
            waits.append(busy.value.seconds)
            for task in tasks[:3]:
                now[0] += 2
                host._hear((min(host._requests), Scored(0.0, None)))
                await task
            tasks += [asyncio.create_task(anyone(host)) for _ in range(3)]
            await asyncio.sleep(0)
            with pytest.raises(Busy) as busy:
                await anyone(host)
            waits.append(busy.value.seconds)
            for number in list(host._requests):
                host._hear((number, Scored(0.0, None)))
            await asyncio.gather(*tasks)
        return waits

    assert asyncio.run(run()) == [1, 20, 1, 20]


class Sink:
    """A pipe that keeps what is sent, as bytes."""

    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(pickle.dumps(message))


def test_an_image_is_sent_once_for_all_results_and_not_at_all_for_those_who_left():
    async def run() -> list[bytes]:
        service = Service([Source(name="m", path="m")])
        host, sink = service.hosts["m"], Sink()
        host.card, host._outgoing = object(), SimpleQueue()
        image = Image.effect_noise((400, 400), 50)
        requests = [Varying(label=0, seed=0, index=i, source=image, from_scale=1) for i in range(10)]
        for leaves in (False, True):
            asking = asyncio.create_task(anext(together(service, "m", requests)))
            await asyncio.sleep(0.01)
            if leaves:
                asking.cancel()
                with suppress(asyncio.CancelledError):
                    await asking
                await asyncio.sleep(0.01)
            host._outgoing.put(None)
            host._write(sink, host._outgoing)
            if not leaves:
                host._hear((0, Scored(0.0, None)))
                await asking
        return sink.sent

    first, end, *rest = asyncio.run(run())
    assert [number for number, _ in pickle.loads(first)] == list(range(10))
    assert len(first) < 2 * 400 * 400
    assert pickle.loads(end) is None
    assert max(map(len, rest)) < 400


def test_a_process_that_never_answers_is_given_up(monkeypatch, capsys):
    starts = []
    monkeypatch.setattr(Host, "start", lambda self: starts.append(self))

    async def run() -> None:
        service = Service([Source(name="m", path="m")])
        host = service.hosts["m"]
        for i in range(RESTARTS + 1):
            assert len(starts) == i
            with pytest.raises(Broken, match="try again"):
                service.card("m")
            host._hear(MemoryError("out of memory"))
            host._ended()
        with pytest.raises(MemoryError):
            await service.loaded()
        with pytest.raises(Broken, match="no longer served"):
            service.card("m")
        with pytest.raises(Broken, match="no longer served"):
            await service.answer("m", Drawing(label=0, seed=0))

    asyncio.run(run())
    assert "m is no longer served: out of memory" in capsys.readouterr().err


def test_a_process_ends_by_itself_when_the_service_stops(bundle):
    async def run() -> int | None:
        async with Service([Source(name="m", path=bundle, device="cpu")]) as service:
            await service.loaded()
            process = service.hosts["m"]._process
        process.join(10)
        return process.exitcode

    assert asyncio.run(run()) == 0


@pytest.fixture
def working(bundle):
    """A worker in a thread, and the service's end of its pipe."""
    ours, theirs = Pipe()
    one = worker.Worker(load(bundle, "cpu"), theirs)
    thread = Thread(target=one.run)
    thread.start()
    yield one, ours
    ours.send(None)
    thread.join(10)
    assert not thread.is_alive()


def test_what_is_wrong_is_refused_and_what_fails_is_said_to(working, monkeypatch, capsys):
    _, pipe = working
    wrong = Varying(label=0, seed=0, source=Image.new("RGB", (32, 16)), from_scale=1)
    pipe.send([(0, wrong)])
    number, answer = pipe.recv()
    assert (number, type(answer)) == (0, Refused)
    monkeypatch.setattr(worker, "token_maps", lambda *_: np.zeros(3).reshape(2, 2))  # a ValueError that nobody meant
    pipe.send([(1, Scoring(image=Image.new("RGB", (16, 16)), label=0))])
    number, answer = pipe.recv()
    assert (number, type(answer)) == (1, Failed)
    assert "reshape" in capsys.readouterr().err


def test_those_who_left_leave_nothing_in_the_worker(working, monkeypatch, until):
    one, pipe = working
    began, go = Event(), Event()

    def respond(*_):
        began.set()
        go.wait(10)

    monkeypatch.setattr(worker, "respond", respond)
    requests = [(i, Drawing(label=0, seed=i)) for i in range(one.at_once + 5)]
    pipe.send(requests)
    assert began.wait(10)
    pipe.send([(number, None) for number, _ in requests])
    until(lambda: not one._wanted)
    go.set()


def test_a_large_image_gives_what_it_gives_alone(bundle):
    model, rng = load(bundle, "cpu"), np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (61, 61, 4), dtype=np.uint8))
    hole = np.zeros((61, 61), dtype=bool)
    hole[3:20, 30:33] = True
    for paste in (False, True):
        found = worker.respond(model, Editing(label=0, seed=1, image=image, hole=hole, paste=paste), lambda _: None)
        expected = model.edit(image, hole, label=0, seed=1, paste=paste)
        assert (np.asarray(found.image) == np.asarray(expected.images[0])).all()
        assert all((a == b[0].numpy()).all() for a, b in zip(found.maps, expected.tokens, strict=True))
    found = worker.respond(model, Varying(label=1, seed=1, source=image, from_scale=2), lambda _: None)
    expected = model.vary(image, 1, from_scale=2, n=1, seed=1)
    assert (np.asarray(found.image) == np.asarray(expected.images[0])).all()
