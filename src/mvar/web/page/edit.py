"""The tab Edit: repaint a part of an image, paint beyond its border, or draw it as another class."""

from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from mvar.web.api.encoding import in_thread
from mvar.web.api.schemas import MOST_IMAGES
from mvar.web.api.uploads import check_pasted
from mvar.web.messages import Array, Card, Drawn, Editing, Varying
from mvar.web.page.asking import QUIET, Asked, Results, connect_stop, sentences
from mvar.web.page.pictures import WAITING, figure, pictures, status
from mvar.web.page.reproducing import saved
from mvar.web.page.settings import Controls
from mvar.web.page.sources import Held, Original, read
from mvar.web.service import Service, together

INSIDE, BEYOND, CLASS = "Repaint the painted area", "Paint beyond the border", "Change the class"
PLACES = {"centre": (0.5, 0.5), "left": (0.0, 0.5), "right": (1.0, 0.5), "top": (0.5, 0.0), "bottom": (0.5, 1.0)}
ORANGE = (255, 136, 0)


def build(service: Service, chosen: gr.State) -> None:
    """Build the tab; `chosen` holds the sample that was drawn last."""
    cards = service.cards
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            original = Original("edit")
            mode = gr.Radio([INSIDE, BEYOND, CLASS], value=INSIDE, label="What to do", elem_id="edit-mode")
            with gr.Group() as inside:
                editor, box, paste = _inside()
            with gr.Group(visible=False) as beyond:
                share = gr.Slider(30, 95, value=60, step=5, label="Shrink the image to (percent)")
                place = gr.Radio(list(PLACES), value="centre", label="Place it at")
            keep = gr.Slider(0, 12, value=2, step=1, label="Maps to keep", visible=False)
        with gr.Column(scale=3, min_width=300):
            controls = Controls(cards)
            count = gr.Slider(1, MOST_IMAGES, value=4, step=1, label="Number of results")
            with gr.Row():
                draw = gr.Button("Edit", variant="primary", min_width=80, elem_id="edit")
                stop = gr.Button("Stop", min_width=80)
            said = gr.HTML(status("Upload an image or use the last sample, then paint over a part of it."))
            result = gr.HTML(elem_id="edited")

    @sentences(said)
    async def run(held: Held | None, n: int, how: str, *values: Any) -> Results:
        own, rest = values[:6], values[6:]
        asked = controls.asked(rest)
        source, _ = await read(held, cards[asked.model].size)
        one, before = await in_thread(wanted, source, cards[asked.model], asked, how, *own)
        if isinstance(one, Editing) and one.paste:
            check_pasted(n, source)
        first, done = await in_thread(figure, before, "before", "before"), 0
        after = [figure(None, "after")] * n
        yield {said: status(WAITING, 0), result: pictures([first, *after], "pair")}
        async with aclosing(together(service, asked.model, [replace(one, index=i) for i in range(n)])) as answers:
            async for some in answers:
                for i, answer in some:
                    if isinstance(answer, Drawn):
                        file = saved(cards[asked.model], asked, i, edit=how)
                        after[i] = await in_thread(figure, answer.image, f"result {i}", f"after {i}", file)
                        done += 1
                line = status(f"{done} of {n} results drawn.", done / n)
                yield {said: line, result: pictures([first, *after], "pair")}
        yield {said: status("Before and after.")}

    inputs = [original.held, count, mode, editor, box, paste, share, place, keep, *controls.components]
    event = draw.click(run, inputs, [said, result], **QUIET)
    connect_stop(stop, said, event)
    mode.change(
        lambda how: [gr.update(visible=how == each) for each in (INSIDE, BEYOND, CLASS)],
        mode,
        [inside, beyond, keep],
        **QUIET,
    )
    original.connect(service, chosen, controls.model, controls.label, said, editor)


def _inside() -> tuple[gr.ImageEditor, gr.Textbox, gr.Checkbox]:
    """What is repainted: where it is painted over, or a box; and whether the rest stays as it is."""
    editor = gr.ImageEditor(
        type="pil",
        sources=(),
        transforms=(),
        layers=False,
        brush=gr.Brush(default_size=48, colors=["#ff8800"], color_mode="fixed"),
        label="Paint over the area to repaint",
        elem_id="editor",
    )
    info = "left, top, right, bottom in percent of the image, such as 25,25,75,75"
    box = gr.Textbox("", label="Or a box", info=info, elem_id="edit-box", max_lines=1)
    return editor, box, gr.Checkbox(True, label="Keep all other pixels except those within 4 pixels of the hole")


def wanted(
    source: Image.Image,
    card: Card,
    asked: Asked,
    how: str,
    painted: dict[str, Any] | None,
    corners: str,
    paste: bool,
    share: float,
    place: str,
    kept: int,
) -> tuple[Editing | Varying, Image.Image]:
    """What the model is asked for, and what the image looks like before; raises ValueError for an invalid hole."""
    if how == CLASS:
        return Varying(source=source, from_scale=min(kept, len(card.shapes) - 1), **asked.common), source
    if how == BEYOND:
        paste = False
        source, hole_HW = shifted(source, share / 100, place)
    else:
        hole_HW = hole_of(source, painted)
        if corners.strip():
            hole_HW = hole_HW | boxed(source, corners)
    if not hole_HW.any():
        raise ValueError("Paint over a part of the image, or give a box.")
    if hole_HW.all():
        raise ValueError("The hole covers the whole image: leave a part of it.")
    return Editing(image=source, hole=hole_HW, paste=paste, **asked.common), marked(source, hole_HW)


def hole_of(image: Image.Image, painted: dict[str, Any] | None) -> Array:
    """What was painted over, bool (H, W) in the image's size."""
    hole_HW = np.zeros((image.height, image.width), bool)
    for layer in (painted or {}).get("layers", []):
        alpha = layer.getchannel("A").resize(image.size, Image.Resampling.BOX)
        hole_HW |= np.asarray(alpha) >= 128
    return hole_HW


def boxed(image: Image.Image, corners: str) -> Array:
    """What is inside a box in percent, bool (H, W); raises ValueError for an invalid one."""
    try:
        left, top, right, bottom = (float(part) / 100 for part in corners.split(","))
    except ValueError:
        left = top = right = bottom = 0.0
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"box = {corners}: give left,top,right,bottom in percent, left < right and top < bottom")
    hole_HW = np.zeros((image.height, image.width), bool)
    rows, columns = (
        slice(round(a * n), round(b * n)) for a, b, n in ((top, bottom, image.height), (left, right, image.width))
    )
    hole_HW[rows, columns] = True
    return hole_HW


def shifted(image: Image.Image, share: float, place: str) -> tuple[Image.Image, Array]:
    """The image made smaller within its own size, and the border around it as the hole, bool (H, W)."""
    small = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)
    x, y = PLACES[place]
    left, top = round((image.width - small.width) * x), round((image.height - small.height) * y)
    colour = tuple(int(mean) for mean in np.asarray(image.convert("RGB")).mean((0, 1)))
    canvas = Image.new("RGB", image.size, colour)
    canvas.paste(small, (left, top))
    hole_HW = np.ones((image.height, image.width), bool)
    hole_HW[top : top + small.height, left : left + small.width] = False
    return canvas, hole_HW


def marked(image: Image.Image, hole_HW: Array) -> Image.Image:
    """The image with its hole coloured."""
    return Image.composite(Image.new("RGB", image.size, ORANGE), image.convert("RGB"), Image.fromarray(hole_HW))
