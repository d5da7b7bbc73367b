"""One image file of any kind as plain 8-bit RGB.

Every part of the library that reads an image reads it here.
"""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("PNG", "JPEG", "WEBP")  # what a file may hold, whatever its suffix says
MIN_SIDE = 8  # smaller images hold nothing to learn from
MAX_ASPECT = 100  # a longer strip would grow beyond all memory when its short side is enlarged


def decode(file: str | Path | BinaryIO, background: str = "white") -> Image.Image:
    """Read one image, from a file by its name or from an open one, as 8-bit RGB, upright.

    EXIF rotation is applied, transparency is laid on the background, 16-bit grey is scaled down; CMYK, palette and grey
    images are converted. Of an animation, the first frame counts. The content decides the format, not the suffix.

    Raises:
        ValueError: the reason why the file cannot be used, without its name.
    """
    if isinstance(file, (str, Path)) and not os.path.isfile(file):
        raise ValueError("broken link" if os.path.islink(file) else "not a file")
    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if min(width, height) < MIN_SIDE:
                raise ValueError(f"{width}x{height} pixels, a side must have at least {MIN_SIDE}")
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(f"{width}x{height} pixels, one side more than {MAX_ASPECT} times the other")
            if width * height > (Image.MAX_IMAGE_PIXELS or width * height):
                raise ValueError(f"{width}x{height} pixels, more than {Image.MAX_IMAGE_PIXELS} in all")
            return _rgb(ImageOps.exif_transpose(image), background)
    except Image.UnidentifiedImageError as error:
        size = os.path.getsize(file) if isinstance(file, (str, Path)) else file.seek(0, os.SEEK_END)
        raise ValueError("not a PNG, JPEG or WebP file" if size else "empty file") from error
    except ValueError:
        raise
    except Exception as error:  # damaged files make Pillow raise nearly anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error or type(error).__name__
        raise ValueError(" ".join(str(reason).split())) from error


def as_image(image: str | Path | Image.Image, field: str = "image", background: str = "white") -> Image.Image:
    """An image given as a file's name or by Pillow as 8-bit RGB, upright; see `decode`.

    Raises:
        ValueError: one line with the field, the file and the reason why it cannot be used.
    """
    if isinstance(image, Image.Image):
        return _rgb(ImageOps.exif_transpose(image), background)
    if not isinstance(image, (str, Path)):
        raise ValueError(f"{field}: is a {type(image).__name__}; give a file's name or an image of Pillow")
    try:
        return decode(image, background)
    except ValueError as error:
        raise ValueError(f"{field} = {str(image)!r}: {error}") from error


def _rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        sixteen = np.asarray(image).astype(np.float32)
        return Image.fromarray((sixteen / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, background), clear).convert("RGB")
    return image.convert("RGB")
