"""The tab Understand: what the model finds surprising in an image, which class it sees, and what its blocks do."""

from contextlib import aclosing
from itertools import pairwise
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from mvar.web.api.encoding import in_thread
from mvar.web.messages import Card, Classified, Classifying, Examined, Examining, Request, Scored, Scoring, Seen
from mvar.web.page.asking import QUIET, Results, connect_stop, sentences
from mvar.web.page.pictures import WAITING, bars, figure, heat, pictures, status, table
from mvar.web.page.settings import chosen_class, class_choice, class_update, model_choice
from mvar.web.page.sources import Held, Original, read
from mvar.web.service import Service, together

LIKELIEST = 10  # classes shown


def build(service: Service, chosen: gr.State) -> None:
    """Build the tab; `chosen` holds the sample that was drawn last."""
    cards = service.cards
    first = next(iter(cards.values()))
    model, label = model_choice(cards), class_choice(first, "Given the class")
    original = Original("understand")
    maps = gr.Slider(1, len(first.shapes), value=first.few_maps, step=1, label="Maps used to infer the class")
    with gr.Row():
        look = gr.Button("Analyse", variant="primary", elem_id="look")
        stop = gr.Button("Stop", min_width=80)
    said = gr.HTML(status("Upload an image or use the last sample."))
    views = [gr.HTML(elem_id=name) for name in ("bits", "posterior", "blocks")]

    @sentences(said)
    async def run(held: Held | None, name: str, typed: int | str | None, k: int) -> Results:
        card = cards[name]
        source, cropped = await read(held, card.size)
        given = chosen_class(card, typed)
        requests: list[Request] = [Scoring(image=source, label=given), Examining(image=source, label=given)]
        if len(card.classes) > 1:
            requests.append(Classifying(image=source, scales=min(k, len(card.shapes))))
        yield {said: status(WAITING, 0), **dict.fromkeys(views, "")}
        done = 0
        async with aclosing(together(service, name, requests)) as answers:
            async for some in answers:
                done += len(some)  # none is partial
                line = status(f"{done} of {len(requests)} analyses finished.", done / len(requests))
                found = [await in_thread(show, card, source, answer) for _, answer in some]
                yield {said: line, **{views[place]: view for place, view in found}}
        yield {said: status(f"This is what the model sees. {cropped}")}

    event = look.click(run, [original.held, model, label, maps], [said, *views], **QUIET)
    connect_stop(stop, said, event)
    model.change(lambda name: [class_update(cards[name]), _maps_update(cards[name])], model, [label, maps], **QUIET)
    original.connect(service, chosen, model, label, said)


def show(card: Card, image: Image.Image, answer: Any) -> tuple[int, str]:
    """Which of the three views an answer belongs to, and how it looks."""
    if isinstance(answer, Scored):
        return 0, bits_view(card, image, answer)
    if isinstance(answer, Classified):
        return 1, posterior_view(card, answer)
    assert isinstance(answer, Examined)
    return 2, blocks_view(card, answer.blocks)


def bits_view(card: Card, image: Image.Image, scored: Scored) -> str:
    """The bits of each token as a map over the image for each scale."""
    h, w = card.size
    image = image.resize((w, h)) if image.size != (w, h) else image
    areas = [h * w for h, w in card.shapes]
    parts = np.split(scored.bits, np.cumsum(areas)[:-1])
    most = float(scored.bits.max())
    figures = [figure(image, "the image", "the image")]
    for (rows, columns), part in zip(card.shapes, parts, strict=True):
        caption = f"{rows}x{columns}: {part.mean():.2f} bits"
        view = heat(part.reshape(rows, columns), image, most)
        figures.append(
            figure(view, f"bits of each token of the {rows}x{columns} map, {part.mean():.2f} on average", caption)
        )
    total = f"{scored.bits.mean():.3f} bits per token, {scored.bits.sum():.0f} in total."
    key = f"Yellow is {most:.1f} bits, dark purple is 0."
    return f"<h3>Bits per token: what surprises the model</h3><p>{total} {key}</p>{pictures(figures, 'strip')}"


def posterior_view(card: Card, classified: Classified) -> str:
    """The likeliest classes as bars."""
    share_C = np.exp(classified.log_posterior)
    best = np.argsort(-share_C)[:LIKELIEST]
    return "<h3>Class</h3>" + bars(
        "p(class | first maps), in percent", [(card.classes[i], float(share_C[i])) for i in best]
    )


def blocks_view(card: Card, blocks: list[Seen]) -> str:
    """What attention and state of each block do, by scale."""
    names = [f"{h}x{w}" for h, w in card.shapes]
    after = [f"{a} to {b}" for a, b in pairwise(names)]
    tables = [
        ("Attention: share of the visible tokens that a query looks at, in percent", names, [b.width for b in blocks]),
        ("Attention: share within the query's own scale, in percent", names, [b.own for b in blocks]),
        ("State: share of Mamba's state that remains after one more map, in percent", after, [b.left for b in blocks]),
    ]
    shown = [table(title, columns, rows, "block") for title, columns, rows in tables if any(rows)]
    return "<h3>Attention and state, by block and scale</h3>" + "".join(shown)


def _maps_update(card: Card) -> Any:
    return gr.update(maximum=len(card.shapes), value=card.few_maps)
