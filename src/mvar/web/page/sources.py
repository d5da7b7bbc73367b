"""The image that a tab works on: an upload or the last sample, cropped to the model's aspect."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from mvar.data.images.decoding import as_image, from_bytes, read_bytes
from mvar.web.api.encoding import in_thread
from mvar.web.api.uploads import MOST_PIXELS
from mvar.web.page.asking import QUIET, Results, Sample, sentences, state
from mvar.web.page.pictures import scaled, status
from mvar.web.page.settings import NO_CLASS
from mvar.web.service import Service

KINDS = [".png", ".jpg", ".jpeg", ".webp"]


@dataclass(frozen=True, eq=False)  # Gradio hashes what a state holds, images have no hash
class Held:
    """What a session keeps of an image: a sample, or an upload's path, as 25 million pixels would be 75 MB."""

    source: Image.Image | str


async def read(held: Held | None, size: tuple[int, int]) -> tuple[Image.Image, str]:
    """The image as RGB, upright, its centre at a model's aspect; and a sentence where it was cropped, else "".

    Args:
        size: (height, width) of the model's images.

    Raises:
        ValueError: there is none, or it cannot be used, and why.
    """
    if held is None:
        raise ValueError("There is no image yet: upload one, or take the last sample.")
    return await in_thread(_read, held.source, size)


def _read(source: Image.Image | str, size: tuple[int, int]) -> tuple[Image.Image, str]:
    if isinstance(source, str) and not Path(source).exists():
        raise ValueError("The upload was deleted after an hour; upload the image again.")
    try:
        image = as_image(from_bytes(read_bytes(source), MOST_PIXELS)) if isinstance(source, str) else source
    except ValueError as error:
        raise ValueError(f"image: {error}; give a PNG, JPEG or WebP") from None
    width, height = image.size
    scale = min(width / size[1], height / size[0])
    crop_w, crop_h = round(size[1] * scale), round(size[0] * scale)
    if (crop_w, crop_h) == image.size:
        return image, ""
    left, top = (width - crop_w) // 2, (height - crop_h) // 2
    text = f"The image was cropped to its centre: {crop_w}x{crop_h} of {width}x{height} pixels."
    return image.crop((left, top, left + crop_w, top + crop_h)), text


class Original:
    """The image of a tab, and the buttons that provide it.

    Attributes:
        held: state with a `Held`.
    """

    def __init__(self, tab: str) -> None:
        self.held = state(None)
        with gr.Row():
            self.upload = gr.UploadButton("Upload an image", file_types=KINDS, size="md", elem_id=f"{tab}-upload")
            self.take = gr.Button("Use the last sample", size="md", elem_id=f"{tab}-take")

    def connect(
        self, service: Service, chosen: gr.State, model: Any, label: Any, said: gr.HTML, editor: Any = None
    ) -> None:
        """Let the buttons work.

        Args:
            chosen: the last sample, if any.
            model, label: choices; the class becomes the sample's.
            said: the line that says what was loaded.
            editor: shows the image, if there is one.
        """

        async def loaded(held: Held, name: str, text: str) -> dict[Any, Any]:
            image, cropped = await read(held, service.card(name).size)
            shown = {} if editor is None else {editor: await in_thread(scaled, image)}
            return {self.held: held, said: status(f"{text} {cropped}"), **shown}

        @sentences(said)
        async def run_upload(path: str, name: str) -> Results:
            yield await loaded(Held(path), name, "Image loaded.")

        @sentences(said)
        async def run_take(sample: Sample | None, name: str) -> Results:
            if sample is None:
                raise ValueError("There is no sample yet: draw one in the tab Generate.")
            index = NO_CLASS if sample.asked.label is None else sample.asked.label
            own = {label: index} if name == sample.asked.model else {}
            yield await loaded(Held(sample.image), name, "Sample loaded.") | own

        @sentences(said)
        async def run_model(held: Held | None, name: str) -> Results:  # whose images may have another aspect
            yield {said: gr.skip()} if held is None else await loaded(held, name, "Image loaded.")

        places = [self.held, said, *([] if editor is None else [editor])]
        self.upload.upload(run_upload, [self.upload, model], places, **QUIET)
        model.change(run_model, [self.held, model], places, **QUIET)
        self.take.click(run_take, [chosen, model], [label, *places], **QUIET)
