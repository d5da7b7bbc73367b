"""The tab Grow: an image after each scale, and variations that keep its first maps."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from mvar.web.api.encoding import in_thread
from mvar.web.messages import Drawing, Drawn, Partial, Varying
from mvar.web.page.asking import QUIET, Results, Sample, connect_stop, sentences, state
from mvar.web.page.pictures import WAITING, figure, framed, pictures, shown, status
from mvar.web.page.reproducing import saved
from mvar.web.page.settings import Controls, class_name
from mvar.web.service import Service, together

VARIATIONS = 8


@dataclass(frozen=True, eq=False)
class Grown:
    """A sample, and the image after each of its scales as `pictures.shown` returns it."""

    sample: Sample
    steps: list[str]


def build(service: Service) -> None:
    """Build the tab."""
    cards = service.cards
    grown = state(None)
    most = len(next(iter(cards.values())).shapes) - 1
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            controls = Controls(cards)
            with gr.Row():
                draw = gr.Button("Grow an image", variant="primary", min_width=80, elem_id="grow")
                stop = gr.Button("Stop", min_width=80)
            keep = gr.Slider(0, most, value=min(2, most), step=1, label="Maps to keep", elem_id="keep")
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
        one = Drawing(**asked.common, partials=tuple(range(scales - 1)))
        kept, steps = min(kept, scales - 1), list[str]()
        keeps = gr.update(maximum=scales - 1, value=kept)
        yield {said: status(WAITING, 0), strip: "", variations: "", grown: None, keep: keeps}
        async with aclosing(service.ask(asked.model, one)) as answers:
            async for answer in answers:
                if isinstance(answer, Partial):
                    picture = Image.fromarray(answer.pixels)
                elif isinstance(answer, Drawn):
                    picture, sample = answer.image, Sample(asked=asked, index=0, image=answer.image, maps=answer.maps)
                steps.append(await in_thread(shown, picture, f"after map {len(steps) + 1}"))
                line = f"Drew map {len(steps)} of {scales} of {name}."
                yield {said: status(line, len(steps) / scales), strip: strip_of(card.shapes, steps, kept)}
        yield {said: status(f"Grew {name} with seed {asked.seed}."), grown: Grown(sample, steps)}

    @sentences(said)
    async def run_vary(found: Grown | None, kept: int) -> Results:
        if found is None:
            raise ValueError("There is nothing to vary yet: grow an image first.")
        requests, card = varied(found.sample, kept), cards[found.sample.asked.model]
        alt = f"{class_name(card, found.sample.asked.label)} with the first {kept} maps kept, variation"
        figures, done = [figure(None, f"{alt} {i}") for i in range(VARIATIONS)], 0
        yield {said: status(WAITING, 0), variations: pictures(figures)}
        async with aclosing(together(service, card.name, requests)) as answers:
            async for some in answers:
                for i, answer in some:
                    if isinstance(answer, Drawn):
                        file = saved(card, found.sample.asked, 1 + i, kept_maps=kept)
                        figures[i], done = await in_thread(figure, answer.image, f"{alt} {i}", str(i), file), done + 1
                yield {said: status(f"{done} of {VARIATIONS} drawn.", done / VARIATIONS), variations: pictures(figures)}
        yield {said: status(f"{VARIATIONS} variations that keep {kept} of {len(card.shapes)} maps.")}

    def run_keep(found: Grown | None, kept: int) -> Any:
        return strip_of(cards[found.sample.asked.model].shapes, found.steps, kept) if found else gr.skip()

    drawing = draw.click(run, [keep, *controls.components], [said, strip, keep, grown, variations], **QUIET)
    varying = vary.click(run_vary, [grown, keep], [said, variations], **QUIET)
    keep.change(run_keep, [grown, keep], strip, **QUIET)
    connect_stop(stop, said, drawing, varying)


def varied(sample: Sample, kept: int) -> list[Varying]:
    """Variations with the sample's noise from index 1 on, as index 0 is the sample itself."""
    asked, source = sample.asked, sample.image if sample.maps is None else sample.maps
    return [Varying(source=source, from_scale=kept, index=1 + i, **asked.common) for i in range(VARIATIONS)]


def strip_of(shapes: Sequence[tuple[int, int]], steps: Sequence[str], kept: int) -> str:
    """The image after each scale, and which maps are kept."""
    captions = [f"{h}x{w}{', kept' if k < kept else ''}" for k, (h, w) in enumerate(shapes)]
    return pictures(map(framed, steps, captions), "strip")
