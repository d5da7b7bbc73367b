"""Many requests at once: leaving cancels them, and so does the error of one."""

import asyncio
from contextlib import aclosing

import pytest

from mvar.web.messages import Drawing, Partial, Refused
from mvar.web.service import together


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
