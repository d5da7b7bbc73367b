"""The tab Edit: repaint a part of an image, paint beyond its border, or draw it as another class."""

from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from mvar.web.api.encoding import in_thread
from mvar.web.api.schemas import MOST_IMAGES
from mvar.web.messages import Array, Drawing, Drawn, Editing, Varying
from mvar.web.page.asking import Held, Results, Sample, connect_stop, sentences
from mvar.web.page.pictures import enlarged, figure, pictures, status, uploaded
from mvar.web.page.settings import NO_CLASS, Controls
from mvar.web.service import Service, together

INSIDE, BEYOND, CLASS = "Repaint what is painted over", "Paint beyond the border", "Change the class"
PLACES = {"centre": (0.5, 0.5), "left": (0.0, 0.5), "right": (1.0, 0.5), "top": (0.5, 0.0), "bottom": (0.5, 1.0)}
UPLOADS = [".png", ".jpg", ".jpeg", ".webp"]
ORANGE = (255, 136, 0)


def build(service: Service, chosen: gr.State) -> None:
    """Build the tab; `chosen` holds the sample that was drawn last."""
    cards = service.cards
    original = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            with gr.Row():
                upload = gr.UploadButton("Upload an image", file_types=UPLOADS, size="md", elem_id="edit-upload")
                take = gr.Button("Take the last sample", size="md", elem_id="edit-take")
            mode = gr.Radio([INSIDE, BEYOND, CLASS], value=INSIDE, label="What to do", elem_id="edit-mode")
            with gr.Group() as inside:
                brush = gr.Brush(default_size=48, colors=["#ff8800"], color_mode="fixed")
                editor = gr.ImageEditor(
                    type="pil",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=brush,
                    label="Paint over what is to be repainted",
                    elem_id="editor",
                )
                box = gr.Textbox(
                    "",
                    label="Or a box",
                    info="left, top, right, bottom in percent of the image, such as 25,25,75,75",
                    elem_id="edit-box",
                    max_lines=1,
                )
                paste = gr.Checkbox(True, label="Keep all other pixels, but for 4 around the hole")
            with gr.Group(visible=False) as beyond:
                share = gr.Slider(30, 95, value=60, step=5, label="Shrink the image to, in percent")
                place = gr.Radio(list(PLACES), value="centre", label="and put it at")
            keep = gr.Slider(0, 12, value=2, step=1, label="Keep the first maps", visible=False)
        with gr.Column(scale=3, min_width=300):
            controls = Controls(cards)
            count = gr.Slider(1, MOST_IMAGES, value=4, step=1, label="Number of results")
            with gr.Row():
                draw = gr.Button("Edit", variant="primary", min_width=80, elem_id="edit")
                stop = gr.Button("Stop", min_width=80)
            said = gr.HTML(status("Upload an image or take a sample; paint over a part of it."))
            result = gr.HTML(elem_id="edited")

    @sentences(said)
    async def run(held: Held | None, what: str, painted: Any, *values: Any) -> Results:
        corners, whole, shrunk, where, kept, n, *rest = values
        if held is None:
            raise ValueError("There is no image yet: upload one, or take the last sample.")
        asked, source = controls.asked(rest), held.image
        common: dict[str, Any] = {"label": asked.label, "seed": asked.seed, "settings": asked.settings}
        one: Drawing
        if what == CLASS:
            most = len(cards[asked.model].shapes) - 1
            one, before = Varying(source=source, from_scale=min(kept, most), **common), source
        else:
            image, hole_HW = (
                shifted(source, shrunk / 100, where) if what == BEYOND else (source, hole_of(source, painted))
            )
            if what == INSIDE and corners.strip():
                hole_HW = hole_HW | boxed(source, corners)
            if not hole_HW.any():
                raise ValueError("Paint over a part of the image, or give a box.")
            if hole_HW.all():
                raise ValueError("Nothing of the image is left: leave a part of it as it is.")
            one = Editing(image=image, hole=hole_HW, paste=whole and what == INSIDE, **common)
            before = marked(image, hole_HW)
        first, done = await in_thread(figure, before, "before", "before"), 0
        after = [figure(None, "after")] * n
        yield [status("Waiting for the model.", 0), pictures([first, *after], "pair")]
        async with aclosing(together(service, asked.model, [replace(one, index=i) for i in range(n)])) as answers:
            async for some in answers:
                for i, answer in some:
                    if isinstance(answer, Drawn):
                        after[i] = await in_thread(figure, answer.image, f"after, result {i}", f"after {i}")
                        done += 1
                yield [status(f"{done} of {n} results drawn.", done / n), pictures([first, *after], "pair")]
        yield [status("Before and after."), gr.skip()]

    common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    inputs = [original, mode, editor, box, paste, share, place, keep, count, *controls.components]
    event = draw.click(run, inputs, [said, result], **common)
    connect_stop(stop, said, event)
    mode.change(
        lambda what: [gr.update(visible=what == each) for each in (INSIDE, BEYOND, CLASS)],
        mode,
        [inside, beyond, keep],
        **common,
    )
    connect_source(service, upload, take, chosen, (controls.model, controls.label), original, said, editor)


def connect_source(
    service: Service,
    upload: Any,
    take: Any,
    chosen: gr.State,
    controls: tuple[Any, Any],
    original: gr.State,
    said: gr.HTML,
    editor: Any = None,
) -> None:
    """Let an upload or the last sample become the image that a tab works on, and show it in the editor, if any.

    Args:
        controls: choice of a model and of a class, which becomes the sample's.
        original: holds the image.
        said: the line that says so.
    """
    model, label = controls

    async def shown(image: Image.Image, text: str) -> list[Any]:
        return [Held(image), status(text), *([] if editor is None else [await in_thread(enlarged, image)])]

    @sentences(said)
    async def run_upload(path: str, name: str) -> Results:
        image = await in_thread(uploaded, path, service.card(name).size)
        yield await shown(image, "This is the image, or its centre.")

    @sentences(said)
    async def run_take(sample: Sample | None, name: str) -> Results:
        if sample is None:
            raise ValueError("There is no sample yet: draw one in the tab Generate.")
        index = NO_CLASS if sample.asked.label is None else sample.asked.label
        same = name == sample.asked.model
        yield [index if same else gr.skip(), *await shown(sample.image, "This is the sample.")]

    places = [original, said, *([] if editor is None else [editor])]
    common: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    upload.upload(run_upload, [upload, model], places, **common)
    take.click(run_take, [chosen, model], [label, *places], **common)


def hole_of(image: Image.Image, painted: dict[str, Any] | None) -> Array:
    """What was painted over, bool (H, W) in the image's size."""
    hole_HW = np.zeros((image.height, image.width), bool)
    for layer in (painted or {}).get("layers", []):
        alpha = layer.getchannel("A").resize(image.size, Image.Resampling.BOX)
        hole_HW |= np.asarray(alpha) >= 128
    return hole_HW


def boxed(image: Image.Image, corners: str) -> Array:
    """What is inside a box in percent, bool (H, W); raises ValueError for one that is none."""
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
