"""POST /v1/images/generations, edits and variations: as OpenAI's, whole or as a stream of events."""

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from time import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image

from mvar.web.api.drawing import Plan, draw, plan, while_connected
from mvar.web.api.encoding import as_base64, encoded, in_thread
from mvar.web.api.errors import Problem, problem_of
from mvar.web.api.links import Links
from mvar.web.api.schemas import Edit, Format, Generation, Variation, described
from mvar.web.api.uploads import check_pasted, hole_of, read_upload
from mvar.web.messages import Drawing, Drawn, Editing, Partial, Varying
from mvar.web.service import Service, together

Count = Callable[[str, int, int], None]  # of a model's images and tokens, for the metrics
UPLOADED = "PNG, JPEG or WebP, of the model's aspect."
MASK = "Its transparent pixels are repainted; left out, those of the image."


def router(service: Service, links: Links, count: Count) -> APIRouter:
    """The routes; `links` makes URLs of images, `count` counts those that were drawn."""
    routes, answers = APIRouter(tags=["images"]), _Answers(service, count)

    @routes.post("/v1/images/generations")
    async def generations(request: Request, body: Generation) -> Any:
        """Draw images of a class."""
        planned = plan(request, service, body, "image_generation")
        if body.response_format == "b64_json":
            return await answers.images(request, planned)
        if body.stream:
            text = "streams hold the images themselves; use b64_json"
            raise Problem(400, f"response_format = 'url': {text}", "response_format")

        def url(drawing: Drawing) -> str:
            token = links.token(planned.card.name, drawing, body.output_compression)
            return str(request.url_for("redraw", file=f"{token}.{body.output_format}"))

        return _response(planned, [{"url": url(drawing)} for drawing in planned.drawings], _usage(planned, []))

    @routes.head("/v1/images/generations/{file}", include_in_schema=False)
    @routes.get("/v1/images/generations/{file}", response_class=Response)
    async def redraw(request: Request, file: str) -> Any:
        """The image of a URL that a generation returned."""
        token, _, kind = file.rpartition(".")
        if kind not in Format.__args__:  # type: ignore[attr-defined]
            raise Problem(404, "url: not one of this server", None, "not_found")
        model, drawing, quality = links.read(token)
        if model not in service.hosts:
            raise Problem(404, f"model = {model!r}: no longer served", "model", "model_not_found")
        if request.method == "HEAD":
            head = Response(media_type=f"image/{kind}")
            del head.headers["Content-Length"]  # which only drawing it would say
            return head
        (drawn,) = await while_connected(request, draw(service, model, [drawing]))
        count(model, 1, drawn.new_tokens)
        return Response(await in_thread(encoded, drawn.image, kind, quality), media_type=f"image/{kind}")

    @routes.post("/v1/images/edits", openapi_extra=described(Edit, image=UPLOADED, mask=MASK))
    async def edits(request: Request) -> Any:
        """Repaint the part of an image that is transparent in the mask."""
        form = await read_upload(request, Edit, "image", "mask")
        _no_url(form.fields)
        planned, image = plan(request, service, form.fields, "image_edit"), form.images["image"]
        if form.fields.paste:
            check_pasted(form.fields.n, image)
        drawing = Editing(**vars(planned.drawing), image=image, hole=hole_of(form.images), paste=form.fields.paste)
        return await answers.images(request, replace(planned, drawing=drawing))

    @routes.post("/v1/images/variations", openapi_extra=described(Variation, image=UPLOADED))
    async def variations(request: Request) -> Any:
        """Keep the coarse token maps of an image and draw the finer ones again."""
        form = await read_upload(request, Variation, "image")
        _no_url(form.fields)
        planned = plan(request, service, form.fields, "image_generation")
        scales, kept = len(planned.card.shapes), form.fields.from_scale
        if kept is not None and kept >= scales:
            raise Problem(400, f"from_scale = {kept}: give 0 (keep nothing) to {scales - 1}", "from_scale")
        kept = scales // 2 if kept is None else kept
        drawing = Varying(**vars(planned.drawing), source=form.images["image"], from_scale=kept)
        return await answers.images(request, replace(planned, drawing=drawing))

    return routes


@dataclass(frozen=True)
class _Answers:
    """Draws what is planned, and answers with the images: whole, or as a stream of events."""

    service: Service
    count: Count

    async def images(self, request: Request, planned: Plan) -> Any:
        """The response, once all images are drawn, or once the first event is there."""
        model, asked = planned.card.name, planned.asked
        if asked.stream:
            events = self._events(planned)
            return StreamingResponse(
                _after(await while_connected(request, anext(events)), events),
                media_type="text/event-stream",
                headers={"X-Accel-Buffering": "no"},  # nginx would hold events back
            )
        drawn = await while_connected(request, draw(self.service, model, planned.drawings))
        self.count(model, len(drawn), sum(each.new_tokens for each in drawn))
        data = [{"b64_json": await as_base64(each.image, asked.output_format, _quality(planned))} for each in drawn]
        return _response(replace(planned, size=_size(drawn[0].image)), data, _usage(planned, drawn))

    async def _events(self, planned: Plan) -> AsyncGenerator[str, None]:
        """Server-sent events: unfinished images as they come, and each finished one."""
        kind, quality, several = planned.asked.output_format, _quality(planned), planned.asked.n > 1
        sent = [0] * planned.asked.n
        async with aclosing(together(self.service, planned.card.name, planned.drawings)) as answers:
            async for i, answer in (each async for some in answers for each in some):
                content: dict[str, Any] = {"created_at": int(time())} | _common(planned)
                if isinstance(answer, Partial):
                    name, image = "partial_image", Image.fromarray(answer.pixels)
                    content["partial_image_index"], sent[i] = sent[i], sent[i] + 1
                elif isinstance(answer, Drawn):
                    name, image = "completed", answer.image
                    content["usage"] = _usage(planned, [answer])
                    self.count(planned.card.name, 1, answer.new_tokens)
                content |= {"size": _size(image), "b64_json": await as_base64(image, kind, quality)}
                content |= {"image_index": i} if several else {}
                yield _event(f"{planned.kind}.{name}", content)


def _no_url(asked: Any) -> None:
    if asked.response_format == "url":
        text = "uploads are not kept, so that no URL can show the result again; use b64_json"
        raise Problem(400, f"response_format = 'url': {text}", "response_format")


def _quality(planned: Plan) -> int:
    return planned.asked.output_compression


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"


def _usage(planned: Plan, drawn: list[Drawn]) -> dict[str, Any]:
    """Tokens that were drawn, and those that they were drawn from: the class, and kept tokens of an image."""
    new = sum(each.new_tokens for each in drawn)
    kept, classes = len(drawn) * planned.card.tokens - new, len(drawn)
    return {
        "input_tokens": classes + kept,
        "input_tokens_details": {"text_tokens": classes, "image_tokens": kept},
        "output_tokens": new,
        "total_tokens": classes + kept + new,
    }


def _common(planned: Plan) -> dict[str, Any]:
    """What responses and events say of all images; `seed`, `model` and `class` are ours."""
    label = planned.drawing.label
    return {
        "background": "opaque",
        "output_format": planned.asked.output_format,
        "quality": "high" if planned.asked.speed == "full" else "medium",
        "size": planned.size,
        "seed": planned.drawing.seed,
        "model": planned.card.name,
        "class": None if label is None else planned.card.classes[label],
    }


def _response(planned: Plan, data: list[dict[str, str]], usage: dict[str, Any]) -> dict[str, Any]:
    return {"created": int(time()), "data": data, "usage": usage} | _common(planned)


async def _after(first: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """The first event, for which the response waited to have a status, and the others; an error is the last one."""
    try:
        yield first
        async for event in events:
            yield event
    except Exception as error:
        yield _event("error", problem_of(error).body)
    finally:
        await events.aclose()


def _event(name: str, content: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps({'type': name} | content)}\n\n"
