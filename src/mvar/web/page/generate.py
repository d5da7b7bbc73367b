"""The tab Generate: images that grow scale by scale, and what reproduces them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr

from mvar.web.api.encoding import in_thread
from mvar.web.api.schemas import MOST_IMAGES
from mvar.web.messages import Drawing, Drawn, Partial
from mvar.web.page import reproducing
from mvar.web.page.asking import QUIET, Asked, Results, Sample, connect_stop, sentences, state
from mvar.web.page.pictures import figure, pictures, progress, status
from mvar.web.page.settings import Controls, class_name
from mvar.web.service import Service, together


def build(service: Service, with_key: bool) -> gr.State:
    """Build the tab; the state holds the sample that other tabs may take."""
    chosen, samples = state(None), state([])
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
            use = gr.Radio([], label="Image to use in the other tabs", visible=False)
            with gr.Accordion("Reproduce these images", open=False):
                plain: dict[str, Any] = {"interactive": False, "show_line_numbers": False, "wrap_lines": True}
                command = gr.Code(label="Command", language="shell", lines=1, **plain)
                python = gr.Code(label="Python", language="python", lines=1, **plain)
                curl = gr.Code(label="HTTP", language="shell", lines=1, **plain)

    @sentences(said)
    async def run(request: gr.Request, n: int, *values: Any) -> Results:
        asked = controls.asked(values)
        source, card = service.hosts[asked.model].source, service.card(asked.model)
        address = str(request.request.base_url) if request.request is not None else "/"
        yield {
            command: reproducing.command(source, card, asked, n),
            python: reproducing.python(source, card, asked, n),
            curl: reproducing.curl(address, card, asked, n, with_key),
        }
        drawn: list[Sample] = []
        async with aclosing(drawing(service, asked, n)) as steps:
            async for view, drawn, done in steps:
                yield {said: progress(done, f"{len(drawn)} of {n} images finished"), gallery: view}
        yield {
            said: status(f"Drew {n} of {class_name(card, asked.label)} with seed {asked.seed}."),
            use: gr.update(choices=[(str(i), i) for i in range(n)], value=0, visible=n > 1),
            samples: drawn,
        }

    outputs = [said, gallery, use, samples, command, python, curl]
    event = draw.click(run, [count, *controls.components], outputs, **QUIET)
    connect_stop(stop, said, event)
    gr.on(
        [use.change, samples.change],
        lambda found, i: found[i or 0] if found else None,
        [samples, use],
        chosen,
        **QUIET,
    )
    return chosen


async def drawing(service: Service, asked: Asked, n: int) -> AsyncGenerator[tuple[str, list[Sample], float], None]:
    """n images as they grow: how they look, those that are finished, and the share of maps that are drawn."""
    card = service.card(asked.model)
    scales, name = len(card.shapes), class_name(card, asked.label)
    one = Drawing(**asked.common, partials=tuple(range(scales - 1)))
    alts = [f"{name}, seed {asked.seed}, image {i}" for i in range(n)]
    figures, maps = [figure(None, alt) for alt in alts], [0] * n
    samples: dict[int, Sample] = {}
    yield pictures(figures), [], 0.0
    async with aclosing(together(service, asked.model, [replace(one, index=i) for i in range(n)])) as answers:
        async for some in answers:
            for i, answer in dict(some).items():  # only the latest of each is shown
                if isinstance(answer, Partial):
                    maps[i] = answer.scale + 1
                    figures[i] = await in_thread(figure, answer.pixels, alts[i], "...")
                elif isinstance(answer, Drawn):
                    maps[i], samples[i] = scales, Sample(asked=asked, index=i, image=answer.image, maps=answer.maps)
                    file = reproducing.saved(card, asked, i)
                    figures[i] = await in_thread(figure, answer.image, alts[i], str(i), file)
            yield pictures(figures), [samples[i] for i in sorted(samples)], sum(maps) / (n * scales)
