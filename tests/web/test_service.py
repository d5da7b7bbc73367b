"""Many requests at once: leaving cancels them, so does the error of one, and how long those beyond a limit wait."""

import asyncio
from contextlib import aclosing
from queue import SimpleQueue

import pytest

from mvar.web.messages import Busy, Drawing, Partial, Refused, Scored
from mvar.web.service import Host, Limits, Source, together


class Slow:
    """A service that says one thing about each request, and then waits; of label 7 it refuses to go on."""

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
