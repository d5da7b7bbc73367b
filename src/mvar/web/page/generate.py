"""The tab Generate: images that grow scale by scale, and what reproduces them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr

from mvar.sampling.labels import file_name
from mvar.web.api.encoding import in_thread
from mvar.web.api.schemas import MOST_IMAGES
from mvar.web.messages import Card, Drawing, Drawn, Partial
from mvar.web.page import reproducing
from mvar.web.page.asking import Asked, Results, Sample, connect_stop, sentences
from mvar.web.page.pictures import figure, pictures, status
from mvar.web.page.settings import Controls, class_name
from mvar.web.service import Service, together

Figure = Any  # Pillow image, pixels, or None for one to come


def build(service: Service, with_key: bool) -> gr.State:
    """Build the tab; the state holds the sample that other tabs may take."""
    chosen, samples = gr.State(None), gr.State([])
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            controls = Controls(service.cards)
            count = gr.Slider(1, MOST_IMAGES, value=4, step=1, label="Number of images")
            with gr.Row():
                draw = gr.Button("Draw", variant="primary", min_width=80, elem_id="draw")
                stop = gr.Button("Stop", min_width=80, elem_id="stop")
        with gr.Column(scale=3, min_width=300):
            said = gr.HTML(status("Choose a class and press Draw."))
            gallery = gr.HTML(elem_id="gallery")
            use = gr.Radio([], label="For the other tabs, take image", visible=False)
            with gr.Accordion("Reproduce these images", open=False):
                plain: dict[str, Any] = {
                    "interactive": False,
                    "show_line_numbers": False,
                    "wrap_lines": True,
                    "lines": 1,
                }
                codes = [
                    gr.Code(label="Command", language="shell", **plain),
                    gr.Code(label="Python", language="python", **plain),
                    gr.Code(label="HTTP", language="shell", **plain),
                ]

    @sentences(said)
    async def run(request: gr.Request, n: int, *values: Any) -> Results:
        asked = controls.asked(values)
        source, card = service.hosts[asked.model].source, service.card(asked.model)
        address = str(request.request.base_url) if request.request is not None else "/"
        blocks = [
            reproducing.command(source, card, asked, n),
            reproducing.python(source, card, asked, n),
            reproducing.curl(address, card, asked, n, with_key),
        ]
        yield [status("Waiting for the model.", 0), grown(card, asked, [None] * n), gr.skip(), gr.skip(), *blocks]
        async with aclosing(drawing(service, asked, n)) as steps:
            async for shown, done in steps:
                views = await in_thread(grown, card, asked, list(shown))
                yield [progress(card, shown, done), views, gr.skip(), gr.skip(), *([gr.skip()] * 3)]
        places = [(str(i), i) for i in range(n)]
        yield [
            status(f"Drew {n} of {class_name(card, asked.label)} with seed {asked.seed}."),
            await in_thread(grown, card, asked, shown),
            gr.update(choices=places, value=0, visible=n > 1),
            shown,
            *([gr.skip()] * 3),
        ]

    event = draw.click(
        run,
        [count, *controls.components],
        [said, gallery, use, samples, *codes],
        show_progress="hidden",
        api_visibility="private",
    )
    connect_stop(stop, said, event)
    gr.on(
        [use.change, samples.change],
        lambda found, i: found[i or 0] if found else None,
        [samples, use],
        chosen,
        show_progress="hidden",
        api_visibility="private",
    )
    return chosen


async def drawing(service: Service, asked: Asked, n: int) -> AsyncGenerator[tuple[list[Any], float], None]:
    """n images as they grow, each None, then pixels, at the end a `Sample`; and the share of maps that are drawn."""
    scales = len(service.card(asked.model).shapes)
    one = Drawing(label=asked.label, seed=asked.seed, settings=asked.settings, partials=tuple(range(scales - 1)))
    shown: list[Any] = [None] * n
    maps = [0] * n
    async with aclosing(together(service, asked.model, [replace(one, index=i) for i in range(n)])) as answers:
        async for some in answers:
            for i, answer in some:
                if isinstance(answer, Partial):
                    shown[i], maps[i] = answer.pixels, answer.scale + 1
                elif isinstance(answer, Drawn):
                    shown[i] = Sample(asked=asked, index=i, image=answer.image, maps=answer.maps)
                    maps[i] = scales
            yield list(shown), sum(maps) / (n * scales)


def progress(card: Card, shown: list[Any], done: float) -> str:
    """How far a drawing is."""
    finished = sum(isinstance(image, Sample) for image in shown)
    return status(f"Drawing: {100 * done:.0f} % of the maps, {finished} of {len(shown)} images finished.", done)


def grown(card: Card, asked: Asked, shown: list[Any], kind: str = "gallery") -> str:
    """Images as far as they are drawn."""
    name, found = class_name(card, asked.label), []
    for i, image in enumerate(shown):
        alt = f"{name}, seed {asked.seed}, image {i}"
        if isinstance(image, Sample):
            file = f"{file_name(name)}-{asked.seed}-{image.index}.png"
            found.append(figure(image.image, alt, str(i), (file, reproducing.facts(card, image))))
        else:
            found.append(figure(image, alt, "..."))
    return pictures(found, kind)
