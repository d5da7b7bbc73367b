"""How tabs ask the service: many requests at once, one sentence for each error, and what a sample is."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from mvar.web.messages import Answer, Broken, Busy, Late, Maps, Partial, Request
from mvar.web.service import Service

Results = AsyncGenerator[Any, None]  # new values of an event's outputs, again and again
MOST_IMAGES = 10  # of one request, as in the HTTP interface
WRONG = (ValueError, Busy, Late, Broken)  # errors whose text says to the user what to do


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What decides an image, but its index.

    Attributes:
        model: name.
        label: class index; None for no class.
        seed: of the noise.
        settings: those that are not the model's own.
    """

    model: str
    label: int | None
    seed: int
    settings: dict[str, Any]


@dataclass(frozen=True, eq=False)  # Gradio hashes what a state holds, images have no hash
class Held:
    """An image that a tab works on."""

    image: Image.Image


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A drawn image, and what drew it.

    Attributes:
        maps: its tokens; None for smooth samples.
    """

    asked: Asked
    index: int
    image: Image.Image
    maps: Maps | None


async def together(
    service: Service, model: str, requests: Sequence[Request]
) -> AsyncGenerator[list[tuple[int, Partial | Answer]], None]:
    """All answers, each with its request's place, in the order in which they come: as many at once as there are.

    Leaving the iteration cancels what is not answered yet. Raises as `Service.ask` does.
    """
    arrived: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def ask(i: int, request: Request) -> None:
        try:
            async for answer in service.ask(model, request):
                arrived.put_nowait((i, answer))
        except Exception as error:
            arrived.put_nowait((i, error))

    tasks = [asyncio.create_task(ask(i, request)) for i, request in enumerate(requests)]
    try:
        left = len(tasks)
        while left:
            some = [await arrived.get()]
            while not arrived.empty():
                some.append(arrived.get_nowait())
            for _, answer in some:
                if isinstance(answer, Exception):
                    raise answer
            left -= sum(not isinstance(answer, Partial) for _, answer in some)
            yield some
    finally:
        for task in tasks:
            task.cancel()


def sentences(handler: Callable[..., Results]) -> Callable[..., Results]:
    """The handler of an event, whose errors reach the user as one sentence."""

    @functools.wraps(handler)
    async def said(*values: Any, **more: Any) -> Results:
        try:
            async with aclosing(handler(*values, **more)) as results:
                async for result in results:
                    yield result
        except WRONG as error:
            raise gr.Error(str(error), title="That did not work", print_exception=False) from None

    return said
