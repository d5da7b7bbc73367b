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
    """An image: its file's mark, whether it is smaller than the model's image size, and its pixels if they are kept."""

    mark: str
    small: bool
    pixels_HW3: np.ndarray | None


def load(path: "Path | Member", image_shape: tuple[int, int], resize_factor: float, keep: bool) -> Loaded | str:
    """Decode an image to see whether it can be used; returns the reason where it cannot.

    Args:
        keep: whether to return its pixels, resized.
    """
    try:
        content = contents(path)
        image = decode(BytesIO(content))
    except ValueError as error:
        return str(error)
    pixels_HW3 = resized(image, image_shape, resize_factor) if keep else None
    return Loaded(mark(content), is_small(image.size, image_shape), pixels_HW3)


def contents(path: "Path | Member") -> bytes:
    """The bytes of an image's file; raises ValueError with the reason where they cannot be read."""
    return read_bytes(path) if isinstance(path, Path) else path.read()


def mark(content: bytes) -> str:
    """A hash of an image's file: 128 bits in hexadecimal."""
    return blake2b(content, digest_size=16).hexdigest()


def is_small(size: tuple[int, int], image_shape: tuple[int, int]) -> bool:
    """Whether an image of this width and height has to be enlarged."""
    return size[0] < image_shape[1] or size[1] < image_shape[0]


def resized(image: Image.Image, image_shape: tuple[int, int], resize_factor: float) -> np.ndarray:
    """Resize by Lanczos, aspect kept, to the smallest size that covers resize_factor times the shape; (H, W, 3)."""
    H, W = (round(side * resize_factor) for side in image_shape)
    scale = max(H / image.height, W / image.width)
    size = max(W, round(image.width * scale)), max(H, round(image.height * scale))
    return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS))
