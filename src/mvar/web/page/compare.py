"""The tab Compare: two models, or two settings, on the same noise."""

from contextlib import aclosing
from typing import Any

import gradio as gr

from mvar.web.messages import Card
from mvar.web.page.asking import QUIET, Asked, Results, connect_stop, sentences
from mvar.web.page.generate import drawing
from mvar.web.page.pictures import progress, status
from mvar.web.page.settings import (
    Settings,
    asked,
    chosen_class,
    class_choice,
    class_name,
    class_update,
    model_choice,
    seed_choice,
)
from mvar.web.service import Service

MOST_IMAGES = 4


def build(service: Service) -> None:
    """Build the tab."""
    cards = service.cards
    names, first = list(cards), next(iter(cards.values()))
    label = class_choice(first)
    with gr.Row(equal_height=True):
        seed = seed_choice()
        count = gr.Slider(1, MOST_IMAGES, value=2, step=1, label="Number of images", scale=3)
    models, settings, galleries = [], [], []
    with gr.Row():
        draw = gr.Button("Draw both", variant="primary", elem_id="compare")
        stop = gr.Button("Stop", min_width=80)
    said = gr.HTML(status("Change a setting or the model on one side, then draw both from the same noise."))
    with gr.Row():
        for side, name in (("A", names[0]), ("B", names[-1])):
            with gr.Column(min_width=280):
                model = model_choice(cards, f"Model {side}", name)
                models.append(model)
                settings.append(Settings(cards[name], f"Settings {side}"))
                galleries.append(gr.HTML(elem_id=f"side-{side.lower()}"))

    def both(values: tuple[Any, ...]) -> list[Asked]:
        index, number, a, b, *rest = values
        half = len(settings[0].components)
        own = chosen_class(cards[a], index)
        other = counterpart(own, cards[a], cards[b])
        return [asked(cards[a], own, number, rest[:half]), asked(cards[b], other, number, rest[half:])]

    @sentences(said)
    async def run(n: int, *values: Any) -> Results:
        sides = both(values)
        yield dict.fromkeys(galleries, "")
        for i, side in enumerate(sides):
            async with aclosing(drawing(service, side, n)) as steps:
                async for view, drawn, done in steps:
                    more = f"{n * i + len(drawn)} of {2 * n} images finished"
                    yield {said: progress((i + done) / 2, more), galleries[i]: view}
        name = class_name(cards[sides[0].model], sides[0].label)
        yield {said: status(f"Drew {n} of {name} on each side with seed {sides[0].seed}.")}

    inputs = [count, label, seed, *models, *settings[0].components, *settings[1].components]
    event = draw.click(run, inputs, [said, *galleries], **QUIET)
    connect_stop(stop, said, event)
    models[0].change(
        lambda name: [class_update(cards[name]), *settings[0].updates(cards[name])],
        models[0],
        [label, *settings[0].components],
        **QUIET,
    )
    models[1].change(lambda name: settings[1].updates(cards[name]), models[1], settings[1].components, **QUIET)


def counterpart(index: int | None, card: Card, other: Card) -> int | None:
    """The index that a class of one model has in another; raises ValueError where it has none."""
    if index is None or card.name == other.name:
        return index
    name = card.classes[index]
    same = [i for i, each in enumerate(other.classes) if each.casefold() == name.casefold()]
    if not same:
        raise ValueError(f"class = {name!r}: {other.name} has no class of this name; choose another class or model")
    return same[0]
