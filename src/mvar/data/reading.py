"""Reading one image of a set, in worker processes too: nothing here imports torch, so that they start quickly.

Shapes: H W an image's own size after resizing, h w the model's image size.
"""

from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from mvar.data.images.decoding import decode, read_bytes

if TYPE_CHECKING:
    from mvar.data.shards.local import Member


class Loaded(NamedTuple):
    """An image: a hash of its file (128 bits in hexadecimal), its width and height, and its pixels if they are kept."""

    mark: str
    size: tuple[int, int]
    pixels_HW3: np.ndarray | None = None


def load(path: "Path | Member", cover: tuple[int, int] | None = None) -> Loaded | str:
    """Decode an image to see whether it can be used; returns the reason where it cannot.

    Args:
        cover: height and width to which its pixels are resized, as `resized` does; None keeps no pixels.
    """
    try:
        content = contents(path)
        image = decode(BytesIO(content))
    except ValueError as error:
        return str(error)
    mark = blake2b(content, digest_size=16).hexdigest()
    return Loaded(mark, image.size, None if cover is None else resized(image, cover))


def contents(path: "Path | Member") -> bytes:
    """The bytes of an image's file; raises ValueError with the reason where they cannot be read."""
    return read_bytes(path) if isinstance(path, Path) else path.read()


def resized(image: Image.Image, cover: tuple[int, int]) -> np.ndarray:
    """Resize by Lanczos, aspect kept, to the smallest size that covers this height and width; (H, W, 3)."""
    H, W = cover
    scale = max(H / image.height, W / image.width)
    size = max(W, round(image.width * scale)), max(H, round(image.height * scale))
    return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))
