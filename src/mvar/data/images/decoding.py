"""One image file of any kind: as plain 8-bit RGB, or as it is stored.

Every part of the library that reads an image reads it here; Pillow decodes it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from mvar.data.images.colour import eight_bits, in_srgb

MOST_BYTES = 2**30  # of a file: above 4 for each of the most pixels
MOST_PIXELS = 250_000_000  # above every camera; a decompression bomb has more
MIN_SIDE = 8  # smaller images hold nothing to learn from
MAX_ASPECT = 100  # a longer strip would grow beyond all memory when its short side is enlarged
READERS: dict[bytes, type[ImageFile]] = {
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"\xff\xd8\xff": JpegImageFile,
    b"RIFF": WebPImageFile,
}  # by how a file begins; Pillow's own choice would warn of large photos
TAIL = 64  # bytes at the end of a file that say whether it is complete
ORIENTATION = 0x0112  # EXIF's tag
COLOUR, GREY_ALPHA = 2, 4  # colour types of PNG


class Look(NamedTuple):
    """What a file says without being decoded."""

    size: tuple[int, int]  # width and height, upright
    lossy: str | None  # "JPEG", "lossy WebP"
    complete: bool  # whether the file ends as it should


def decode(file: str | Path | BinaryIO, background: str = "white") -> Image.Image:
    """Read one image from a named or an open file as 8-bit RGB, upright.

    Colours are converted to sRGB by the ICC profile, EXIF rotation is applied, transparency is laid on the background,
    16 bits are scaled down. Of an animation, the first frame counts. The content decides the format, not the suffix.

    Raises:
        ValueError: the reason why the file cannot be used, without its name.
    """
    with _one_reason():
        return _on_background(_stored(_opened(read_bytes(file))), background)


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
            return _stored(image.copy())
    if not isinstance(image, (str, Path)):
        raise ValueError(f"{field}: is a {type(image).__name__}; give a file's name or an image of Pillow")
    with _one_reason(f"{field} = {str(image)!r}"):
        return _stored(_opened(read_bytes(image)))


def from_bytes(content: bytes, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """A file's content as `as_stored` returns it; one with more pixels is not decoded.

    Raises:
        ValueError: the reason why it cannot be used.
    """
    with _one_reason():
        return _stored(_opened(content, most_pixels))


def look(content: bytes) -> Look:
    """A file's size and kind, from its header.

    Raises:
        ValueError: the reason why it cannot be used: no image, damaged, too small, too narrow, too large.
    """
    with _one_reason():
        image = _opened(content)
        width, height = image.size
        lossy = "JPEG" if isinstance(image, JpegImageFile) else None
        if isinstance(image, WebPImageFile):
            lossless = content.find(b"VP8L")
            lossy = "lossy WebP" if lossless < 0 or 0 < content.find(b"VP8 ") < lossless else None
        size = (height, width) if 5 <= _orientation(image) <= 8 else (width, height)
        if isinstance(image, PngImageFile) and _complete(content):
            image.verify()  # the checksums of all its parts
        return Look(size, lossy, _complete(content))


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
        if os.path.getsize(file) > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES >> 30} GiB")
        return Path(file).read_bytes()


# --- parts ---


@contextmanager
def _one_reason(named: str = "") -> Iterator[None]:
    """Turn any exception into a ValueError of one line: damaged files make Pillow raise nearly anything."""
    try:
        yield
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise ValueError((f"{named}: " if named else "") + " ".join(reason.split())) from error


def _opened(content: bytes, most_pixels: int = MOST_PIXELS) -> ImageFile:
    """An image whose header is read, and whose size is one that can be used."""
    reader = next((reader for start, reader in READERS.items() if content.startswith(start)), None)
    if reader is None or (reader is WebPImageFile and content[8:12] != b"WEBP"):
        raise ValueError("not a PNG, JPEG or WebP file" if content else "empty file")
    if reader is WebPImageFile and not _complete(content):
        raise ValueError("image file is truncated")
    image = reader(BytesIO(content))
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{width}x{height} pixels, a side must have at least {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width}x{height} pixels, one side more than {MAX_ASPECT} times the other")
    if width * height > most_pixels:
        raise ValueError(f"{width}x{height} pixels, more than {most_pixels // 1_000_000} million in all")
    if reader is PngImageFile:
        image.info["bits"], image.info["grey_alpha"] = content[24], content[25] == GREY_ALPHA
        if content[24:26] == bytes((16, COLOUR)) and "transparency" in image.info:
            # Pillow keeps the upper bytes, and the lower ones when told the other byte order.
            image.info["low_bytes"] = low = PngImageFile(BytesIO(content))
            low.tile = [(*low.tile[0][:3], "RGB;16L")]  # type: ignore[list-item]
    return image


def _complete(content: bytes) -> bool:
    """Whether a file ends as its kind does."""
    if content.startswith(b"RIFF"):
        return len(content) >= 8 + int.from_bytes(content[4:8], "little")
    return (b"IEND" if content.startswith(b"\x89PNG") else b"\xff\xd9") in content[-TAIL:]


def _stored(image: Image.Image) -> Image.Image:
    """See `as_stored`; the image itself where only its `info` changes."""
    image.load()
    clear, profile, bits = (image.info.get(key) for key in ("transparency", "icc_profile", "bits"))
    orientation, grey16 = _orientation(image), image.mode.startswith("I")
    if image.info.get("grey_alpha"):  # of 16 bits, which Pillow decodes to RGBA
        image = image.convert("LA")
    key = clear if grey16 or image.mode in ("1", "L", "RGB") else None
    if image.mode == "L" and isinstance(key, int):
        key *= {2: 85, 4: 17}.get(bits or 8, 1)  # in the values that Pillow decodes to, which fill 8 bits
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
        samples = np.asarray(image)
        if low := image.info.get("low_bytes"):
            samples = samples.astype(np.uint16) * 256 + np.asarray(low)
        same = samples == key
        found.putalpha(Image.fromarray(np.where(same if same.ndim == 2 else same.all(-1), 0, 255).astype(np.uint8)))
    if orientation > 1:
        found.getexif()[ORIENTATION] = orientation
        found = ImageOps.exif_transpose(found)
    found.info = {"icc_profile": profile} if isinstance(profile, bytes) and profile else {}
    return found


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, upright, where EXIF does not say it or is damaged."""
    try:
        return int(Image.Image.getexif(image).get(ORIENTATION, 1))  # that of a PNG would decode it first
    except Exception:  # EXIF may be damaged in as many ways as a file
        return 1


def _on_background(stored: Image.Image, background: str) -> Image.Image:
    image = in_srgb(stored)
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")
