"""The tab Grow: an image after each scale, and variations that keep its first maps."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np

from mvar.web.api.encoding import in_thread
from mvar.web.messages import Drawing, Drawn, Partial, Varying
from mvar.web.page.asking import Results, Sample, connect_stop, sentences
from mvar.web.page.pictures import figure, pictures, status
from mvar.web.page.settings import Controls, class_name
from mvar.web.service import Service, together

VARIATIONS = 8


@dataclass(frozen=True, eq=False)
class Grown:
    """A sample, and the image after each of its scales."""

    sample: Sample
    steps: list[Any]


def build(service: Service) -> None:
    """Build the tab."""
    cards = service.cards
    grown = gr.State(None)
    most = len(next(iter(cards.values())).shapes) - 1
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            controls = Controls(cards)
            with gr.Row():
                draw = gr.Button("Grow an image", variant="primary", min_width=80, elem_id="grow")
                stop = gr.Button("Stop", min_width=80)
            keep = gr.Slider(0, most, value=min(2, most), step=1, label="Keep the first maps", elem_id="keep")
            vary = gr.Button(f"Show {VARIATIONS} variations", variant="primary", elem_id="vary")
        with gr.Column(scale=3, min_width=300):
            said = gr.HTML(status("Grow an image, choose how many of its maps to keep, and vary the rest."))
            strip = gr.HTML(elem_id="strip")
            variations = gr.HTML(elem_id="variations")

    @sentences(said)
    async def run(kept: int, *values: Any) -> Results:
        asked = controls.asked(values)
        card = cards[asked.model]
        scales, name = len(card.shapes), class_name(card, asked.label)
        one = Drawing(label=asked.label, seed=asked.seed, settings=asked.settings, partials=tuple(range(scales - 1)))
        steps: list[Any] = []
        sample = Sample(asked=asked, index=0, image=None, maps=None)  # type: ignore[arg-type]  # until it is drawn
        keeps = gr.update(maximum=scales - 1, value=min(kept, scales - 1))
        yield [status("Waiting for the model.", 0), "", keeps, None, ""]
        async with aclosing(together(service, asked.model, [one])) as answers:
            async for some in answers:
                for _, answer in some:
                    if isinstance(answer, Partial):
                        steps.append(answer.pixels)
                    elif isinstance(answer, Drawn):
                        sample = Sample(asked=asked, index=0, image=answer.image, maps=answer.maps)
                        steps.append(np.asarray(answer.image))
                line = status(f"Drew map {len(steps)} of {scales} of {name}.", len(steps) / scales)
                yield [line, await in_thread(strip_of, card.shapes, list(steps), kept), gr.skip(), None, ""]
        yield [status(f"Grew {name} with seed {asked.seed}."), gr.skip(), gr.skip(), Grown(sample, steps), ""]

    @sentences(said)
    async def run_vary(found: Grown | None, kept: int) -> Results:
        if found is None:
            raise ValueError("There is nothing to vary yet: grow an image first.")
        sample = found.sample
        asked, card = sample.asked, cards[sample.asked.model]
        common: dict[str, Any] = {"label": asked.label, "seed": asked.seed, "settings": asked.settings}
        source = sample.image if sample.maps is None else sample.maps
        # Index 0 is the image itself.
        requests = [Varying(source=source, from_scale=kept, index=1 + i, **common) for i in range(VARIATIONS)]
        alt = f"{class_name(card, asked.label)} with the first {kept} maps kept, variation"
        figures = [figure(None, f"{alt} {i}") for i in range(VARIATIONS)]
        done = 0
        yield [status("Waiting for the model.", 0), pictures(figures)]
        async with aclosing(together(service, asked.model, requests)) as answers:
            async for some in answers:
                for i, answer in some:
                    if isinstance(answer, Drawn):
                        figures[i], done = await in_thread(figure, answer.image, f"{alt} {i}", str(i)), done + 1
                line = status(f"{done} of {VARIATIONS} variations drawn.", done / VARIATIONS)
                yield [line, pictures(figures)]
        yield [status(f"{VARIATIONS} variations that keep {kept} of {len(card.shapes)} maps."), gr.skip()]

    def run_keep(found: Grown | None, kept: int) -> Any:
        return strip_of(cards[found.sample.asked.model].shapes, found.steps, kept) if found else gr.skip()

    common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    drawing = draw.click(run, [keep, *controls.components], [said, strip, keep, grown, variations], **common)
    varying = vary.click(run_vary, [grown, keep], [said, variations], **common)
    keep.change(run_keep, [grown, keep], strip, **common)
    connect_stop(stop, said, drawing, varying)


def strip_of(shapes: Sequence[tuple[int, int]], steps: Sequence[Any], kept: int) -> str:
    """The image after each scale, and which maps are kept."""
    figures = []
    for k, (image, (h, w)) in enumerate(zip(steps, shapes, strict=False)):
        figures.append(figure(image, f"after map {k + 1}, {h}x{w}", f"{h}x{w}{', kept' if k < kept else ''}"))
    return pictures(figures, "strip")
