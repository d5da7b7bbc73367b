"""One image file of any kind: as plain 8-bit RGB, or as it is stored.

Every part of the library that reads an image reads it here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Condition
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mvar.data.images.colour import eight_bits, in_srgb
from mvar.data.images.containers import COLOUR, GREY_ALPHA, MOST_PIXELS, Container, take_apart

MOST_BYTES = 2**30  # of a file: above 4 for each of the most pixels
READERS: dict[str, type[ImageFile]] = {"PNG": PngImageFile, "JPEG": JpegImageFile, "WEBP": WebPImageFile}
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation


def decode(file: str | Path | BinaryIO, background: str = "white") -> Image.Image:
    """Read one image from a named or an open file as 8-bit RGB, upright.

    Colours are converted to sRGB by the ICC profile, EXIF rotation is applied, transparency is laid on the background,
    16 bits are scaled down. Of an animation, the first frame counts. The content decides the format, not the suffix.

    Raises:
        ValueError: the reason why the file cannot be used, without its name.
    """
    with _one_reason():
        container = take_apart(read_bytes(file))
        with _room(container):
            return _on_background(_stored(container), background)


def as_image(image: str | Path | Image.Image, field: str = "image", background: str = "white") -> Image.Image:
    """A file or an image of Pillow as 8-bit RGB in sRGB, upright; see `decode`.

    Raises:
        ValueError: one line with the field, the file and the reason why it cannot be used.
    """
    stored = as_stored(image, field)
    with _one_reason(field):
        return _on_background(stored, background)


def as_stored(image: str | Path | Image.Image, field: str = "image") -> Image.Image:
    """A file or an image of Pillow, upright, in its own mode and with its ICC profile.

    Modes are L, LA, I;16, RGB, RGBA and CMYK: grey of less than 8 bits becomes L, palettes become RGB or RGBA, a
    transparent colour becomes alpha, and only grey without alpha keeps 16 bits. `info` has `icc_profile` or nothing.

    Raises:
        ValueError: one line with the field, the file and the reason why it cannot be used.
    """
    if isinstance(image, Image.Image):
        with _one_reason(field):
            return _upright(image.copy(), _exif_orientation(image))
    if not isinstance(image, (str, Path)):
        raise ValueError(f"{field}: is a {type(image).__name__}; give a file's name or an image of Pillow")
    with _one_reason(f"{field} = {str(image)!r}"):
        container = take_apart(read_bytes(image))
        with _room(container):
            return _stored(container)


def read_bytes(file: str | Path | BinaryIO) -> bytes:
    """The content of an image file.

    Raises:
        ValueError: the reason why it cannot be read, without its name.
    """
    if not isinstance(file, (str, Path)):
        return file.read()
    with _one_reason():
        if not os.path.isfile(file):  # reading a pipe would never end
            raise ValueError("broken link" if os.path.islink(file) else "not a file")
        with open(file, "rb") as opened:
            if os.fstat(opened.fileno()).st_size > MOST_BYTES:
                raise ValueError(f"larger than {MOST_BYTES >> 30} GiB")
            return opened.read()


# --- parts ---


@contextmanager
def _one_reason(named: str = "") -> Iterator[None]:
    """Turn any exception into a ValueError of one line: damaged files make Pillow raise nearly anything."""
    try:
        yield
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise ValueError((f"{named}: " if named else "") + " ".join(reason.split())) from error


_decoding, _done = 0, Condition()  # pixels of the images that threads are decoding now


@contextmanager
def _room(container: Container) -> Iterator[None]:
    """Wait until the images being decoded have at most `MOST_PIXELS` together, however many threads decode."""
    global _decoding
    pixels = container.size[0] * container.size[1]
    with _done:
        _done.wait_for(lambda: _decoding + pixels <= MOST_PIXELS)
        _decoding += pixels
    try:
        yield
    finally:
        with _done:
            _decoding -= pixels
            _done.notify_all()


def _stored(container: Container) -> Image.Image:
    """See `as_stored`."""
    image: Image.Image = _loaded(container)
    clear, bits = container.clear, container.bits
    if container.colour == COLOUR and clear and bits == 16:
        # Pillow keeps the upper bytes, and the lower ones when told the other byte order.
        samples_HW3 = np.asarray(image).astype(np.uint16) * 256 + np.asarray(_loaded(container, "RGB;16L"))
        image.putalpha(_alpha(samples_HW3, clear))
    elif clear:  # in the values that Pillow decodes to, which fill 8 bits
        image.info["transparency"] = clear if len(clear) == 3 else clear[0] * {2: 85, 4: 17}.get(bits, 1)
    if container.colour == GREY_ALPHA:  # of 16 bits, which Pillow decodes to RGBA
        image = image.convert("LA")
    if container.profile:
        image.info["icc_profile"] = container.profile
    return _upright(image, container.orientation)


def _loaded(container: Container, layout: str | None = None) -> ImageFile:
    """The pixels as Pillow decodes them; layout: how samples are stored, in place of what Pillow finds."""
    try:
        image = READERS[container.kind](BytesIO(container.pixels))
        if image.size != container.size:  # the one that was checked
            raise ValueError("damaged (says two sizes)")
        if layout is not None:
            image.tile = [(*image.tile[0][:3], layout)]  # type: ignore[list-item]
        image.load()
    except Exception as error:
        if not container.complete:
            raise ValueError("truncated") from error
        raise
    return image


def _alpha(samples: np.ndarray, clear: int | tuple[int, ...]) -> Image.Image:
    """0 where samples, (H, W) or (H, W, 3), have the transparent colour, else 255."""
    same_HW = (samples == clear) if samples.ndim == 2 else (samples == clear).all(-1)
    return Image.fromarray(np.where(same_HW, 0, 255).astype(np.uint8))


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    """Any image of Pillow as `as_stored` returns it; the image itself where only its `info` changes."""
    clear, profile = image.info.get("transparency"), image.info.get("icc_profile")
    grey16 = image.mode.startswith("I")
    key = clear if grey16 or image.mode in ("1", "L", "RGB") else None
    if grey16:  # 16-bit grey, which Pillow's own conversion would clip at 255
        found = Image.fromarray(np.asarray(image).clip(0, 65535).astype(np.uint16))
        found = found if key is None else eight_bits(found)
    elif image.mode == "CMYK":
        found = image
    else:
        mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        mode += "A" if key is None and image.has_transparency_data else ""
        found = image if image.mode == mode else image.convert(mode)
    if key is not None:
        found.putalpha(_alpha(np.asarray(image), key))
    if orientation in TURNS:
        found = found.transpose(TURNS[orientation])
    found.info = {"icc_profile": profile} if isinstance(profile, bytes) and profile else {}
    return found


def _exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # EXIF may be damaged in as many ways as a file
        return 1


def _on_background(stored: Image.Image, background: str) -> Image.Image:
    image = in_srgb(stored)
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
