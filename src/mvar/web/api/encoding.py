"""Images to bytes and back, in threads of their own: few, as large images take much memory."""

import asyncio
import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any, TypeVar

from PIL import Image

from mvar.data.images.colour import in_srgb
from mvar.data.images.decoding import as_image

Result = TypeVar("Result")
AT_ONCE = 2  # images that are encoded or decoded
PNG_MODES = ("L", "LA", "I;16", "RGB", "RGBA")

_threads = ThreadPoolExecutor(AT_ONCE, "pixels")


async def in_thread(work: Callable[..., Result], *arguments: Any) -> Result:
    """The result of work on pixels."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *arguments)


def encoded(image: Image.Image, kind: str, quality: int = 100) -> bytes:
    """An image file with its colour profile and nothing else that the image knew.

    Args:
        kind: png, jpeg or webp.
        quality: of jpeg and webp, 0 to 100; webp is lossless at 100.
    """
    options: dict[str, Any] = {"icc_profile": image.info.get("icc_profile")}
    if kind == "jpeg":
        image, options = as_image(image), {"quality": max(1, quality), "subsampling": 0 if quality > 90 else 2}
    elif kind == "webp":
        image = image if image.mode in ("RGB", "RGBA") else in_srgb(image)
        options |= {"quality": quality, "lossless": quality == 100, "exact": True}
    elif image.mode not in PNG_MODES:
        image, options = in_srgb(image), {}
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


async def as_base64(image: Image.Image, kind: str, quality: int) -> str:
    """An image file as JSON holds it."""
    return base64.b64encode(await in_thread(encoded, image, kind, quality)).decode()
