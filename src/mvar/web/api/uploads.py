"""Forms with images: read, checked and decoded; nothing of a client's is written to disk or kept."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Request
from PIL import Image
from starlette.datastructures import UploadFile

from mvar.data.images.decoding import from_bytes
from mvar.web.api.encoding import in_thread
from mvar.web.api.errors import Problem
from mvar.web.api.schemas import Parameters, from_form

MOST_BYTES = 20 * 2**20  # of an uploaded file
MOST_PIXELS = 25_000_000  # of an uploaded image, and of all pasted results of a request together
MOST_FIELDS = 64
OPAQUE = 128  # of 255: from here on a pixel of a mask counts as opaque


@dataclass(frozen=True)
class Upload:
    """A form: its fields, and its images by name."""

    fields: Any
    images: dict[str, Image.Image]


async def read_upload(request: Request, kind: type[Parameters], *names: str) -> Upload:
    """The form of a request; the first of the named images is required.

    Raises:
        Problem: a field or image that cannot be used, or no memory for it.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Problem(415, "body: send a form, as Content-Type: multipart/form-data", None, "unsupported_media_type")
    texts: dict[str, str] = {}
    files: dict[str, bytes] = {}
    async with request.form(max_files=len(names) + 1, max_fields=MOST_FIELDS) as form:
        for field, value in form.multi_items():
            name = field.removesuffix("[]")
            if name in files or name in texts:
                raise Problem(400, f"{name}: appears more than once; give one", name)
            if isinstance(value, UploadFile) and name in names:
                files[name] = await _content(name, value)
            elif isinstance(value, UploadFile):
                raise Problem(400, f"{name}: is a file; known files: {', '.join(names)}", name, "unknown_parameter")
            else:
                texts[name] = value
    if names[0] not in files:
        raise Problem(400, f"{names[0]}: is missing; send an image file", names[0], "missing_parameter")
    fields = from_form(kind, texts)
    images = {name: await _decoded(name, content) for name, content in files.items()}
    for image in images.values():
        request.scope["mvar.take"](image.width * image.height * len(image.getbands()))
    return Upload(fields, images)


async def _content(name: str, file: UploadFile) -> bytes:
    if (file.size or 0) > MOST_BYTES:
        raise Problem(413, f"{name}: larger than {MOST_BYTES >> 20} MiB; send a smaller file", name, "too_large")
    return await file.read()


async def _decoded(name: str, content: bytes) -> Image.Image:
    try:
        return await in_thread(from_bytes, content, MOST_PIXELS)
    except ValueError as error:
        raise Problem(400, f"{name}: {error}; send another PNG, JPEG or WebP file", name, "invalid_image") from error


def check_pasted(n: int, image: Image.Image) -> None:
    """Refuse more than can be held of results that have the size of an image.

    Raises:
        Problem: they are too many.
    """
    if n * image.width * image.height > MOST_PIXELS:
        limit = f"pasted results have at most {MOST_PIXELS // 1_000_000} million pixels in all"
        raise Problem(400, f"n = {n}: {limit}; ask for fewer, or send a smaller image", "n")


def hole_of(images: dict[str, Image.Image]) -> np.ndarray:
    """Bool (H, W), true where the mask, or without one the image itself, is transparent.

    Raises:
        Problem: no transparency, of nothing or of all, or a mask of another size.
    """
    name = "mask" if "mask" in images else "image"
    image = images[name]
    if image.mode not in ("LA", "RGBA"):
        raise Problem(400, f"{name}: has no transparent pixels, which say what to repaint; send a mask with some", name)
    if image.size != images["image"].size:
        have, need = ("x".join(map(str, each.size)) for each in (image, images["image"]))
        raise Problem(400, f"mask: is {have} pixels, the image is {need}; send a mask of the image's size", name)
    hole = np.asarray(image.getchannel("A")) < OPAQUE
    if not hole.any() or hole.all():
        which = "no pixel is" if not hole.any() else "all pixels are"
        raise Problem(400, f"{name}: {which} transparent; make those transparent that are to be repainted", name)
    return hole
