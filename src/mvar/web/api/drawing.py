"""From a request to its images: one message to the model for each, until the client leaves."""

import asyncio
import secrets
from collections.abc import Awaitable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from fastapi import Request

from mvar.sampling.config import SamplingSettings
from mvar.web.api import schemas
from mvar.web.api.errors import Problem
from mvar.web.api.prompts import check_size, find_class, find_model
from mvar.web.messages import Card, Drawing, Drawn
from mvar.web.service import Service, together

Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """What a request asks of a model.

    Attributes:
        drawing: of its first image.
        size: of the images, WxH.
        kind: of the request, as events name it: image_generation or image_edit.
    """

    asked: schemas.Drawn
    card: Card
    drawing: Drawing
    size: str
    kind: str

    @property
    def drawings(self) -> list[Drawing]:
        """One for each image."""
        return [replace(self.drawing, index=i) for i in range(self.asked.n)]


def card_of(name: str, service: Service) -> Card:
    """Of the model that a request names.

    Raises:
        Problem: there is no such model.
        Broken: it is not loaded.
    """
    return service.card(find_model(name, service))


def plan(request: Request, service: Service, asked: schemas.Drawn, kind: str) -> Plan:
    """The plan of a request, checked.

    Raises:
        Problem: what is wrong.
    """
    card = card_of(asked.model, service)
    size = check_size(asked.size, card)
    scales = len(card.shapes)
    settings = asked.settings()
    used = SamplingSettings(**card.defaults).changed(**settings)
    try:
        used.check(scales)
    except ValueError as error:
        name = str(error).split()[0]
        raise Problem(400, str(error), schemas.NAMES.get(name, name)) from error
    if asked.speed == "fast":
        settings["guidance"] = [*used.guidance_weights(scales)[:-1], 0.0]
    drawing = Drawing(
        label=find_class(asked.prompt, card.classes),
        seed=secrets.randbelow(2**32) if asked.seed is None else asked.seed,
        settings=settings,
        partials=partials(scales, asked.partial_images) if asked.stream else (),
    )
    note(request, card.name, asked.n)
    return Plan(asked, card, drawing, size, kind)


def partials(scales: int, count: int | None) -> tuple[int, ...]:
    """After which scales so many unfinished images are sent: evenly spread; None for all scales but the last."""
    if count is None or count >= scales - 1:
        return tuple(range(scales - 1))
    return tuple(i * (scales - 1) // (count + 1) for i in range(1, count + 1))


def note(request: Request, model: str, images: int) -> None:
    """Add a request's model and number of images to its log line."""
    request.scope["mvar.noted"].update(model=model, images=images)


async def draw(service: Service, model: str, drawings: Sequence[Drawing]) -> list[Drawn]:
    """The finished images, in order."""
    found: dict[int, Any] = {}
    async with aclosing(together(service, model, drawings)) as answers:
        async for some in answers:
            found |= {i: answer for i, answer in some if isinstance(answer, Drawn)}
    return [found[i] for i in range(len(drawings))]


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of work, which is cancelled when the client leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Problem(499, "the client left", None, "client_left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _left(request: Request) -> None:
    """Return when the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
