"""Colours by their ICC profile: into sRGB, which every model sees, and back for what is painted into an image.

A stored image (see `mvar.data.images.decoding.as_stored`) has mode L, LA, I;16, RGB, RGBA or CMYK, and its profile, if
any, in `info`.
"""

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms
from PIL.ImageCms import Flags, ImageCmsProfile, ImageCmsTransform, Intent

SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # what ICC calls the modes
TOLERANCE = 2  # of 255: a profile that changes no colour by more is sRGB, rounded by its writer


def in_srgb(image: Image.Image) -> Image.Image:
    """A stored image as 8-bit RGB, or RGBA where it has alpha, in sRGB and without a profile.

    A profile that is damaged or of another colour space than the pixels counts as sRGB. An image that already is all
    that is not copied.
    """
    if image.mode == "RGB" and not image.info:
        return image
    mode = _colour_mode(image)
    if image.mode == "I;16":
        colour = eight_bits(image)
    else:
        colour = image if image.mode == mode else image.convert(mode)
    transform = _transform(image.info.get("icc_profile"), mode)
    found = colour.convert("RGB") if transform is None else transform.apply(colour)
    found.info = {}
    if image.mode in ("LA", "RGBA"):
        found.putalpha(image.getchannel("A"))
    return found


def paintable(image: Image.Image) -> Image.Image:
    """The stored image if something in sRGB can be painted into it, else in sRGB.

    Nothing is painted in CMYK, whose blacks are the printer's choice, nor with a profile that only describes a scanner.
    """
    mode, profile = _colour_mode(image), image.info.get("icc_profile")
    there, back = (_transform(profile, mode, back) for back in (False, True))
    return in_srgb(image) if mode == "CMYK" or (there is not None and back is None) else image


def like(painted: Image.Image, image: Image.Image) -> np.ndarray:
    """8-bit RGB in sRGB as colours of a `paintable` image, without alpha: (H, W, 1 or 3), uint8 or uint16."""
    mode = _colour_mode(image)
    transform = _transform(image.info.get("icc_profile"), mode, back=True)
    found_HWC = np.atleast_3d(np.asarray(painted.convert(mode) if transform is None else transform.apply(painted)))
    return found_HWC.astype(np.uint16) * 257 if image.mode == "I;16" else found_HWC


def eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey."""
    return Image.fromarray((np.asarray(image).astype(np.float32) / 257).round().astype(np.uint8))


def _colour_mode(image: Image.Image) -> str:
    """The mode without alpha, with 8 bits."""
    return {"LA": "L", "I;16": "L", "RGBA": "RGB"}.get(image.mode, image.mode)


@lru_cache(maxsize=256)  # the images of a set share their profiles, mostly a few
def _transform(profile: bytes | None, mode: str, back: bool = False) -> ImageCmsTransform | None:
    """From a profile to sRGB, or back; None where colours stay as they are, or the profile does not serve.

    Threads can share it: without LittleCMS's cache of the last pixel nothing in it is written.
    """
    if profile is None:
        return None
    try:
        theirs, srgb = ImageCmsProfile(BytesIO(profile)), ImageCmsProfile(ImageCms.createProfile("sRGB"))
        if theirs.profile.xcolor_space.strip() != SPACES[mode]:
            return None
        flags = Flags.BLACKPOINTCOMPENSATION | Flags.NOCACHE
        there = ImageCmsTransform(theirs, srgb, mode, "RGB", Intent.RELATIVE_COLORIMETRIC, flags=flags)
        if mode != "CMYK" and _changes(there, mode) <= TOLERANCE:
            return None
        if back:
            return ImageCmsTransform(srgb, theirs, "RGB", mode, Intent.RELATIVE_COLORIMETRIC, flags=flags)
        return there
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError):
        return None


def _changes(transform: ImageCmsTransform, mode: str) -> int:
    """The largest change of a channel, of 255, over colours that cover all."""
    levels = np.linspace(0, 255, 6 if mode == "RGB" else 256).astype(np.uint8)
    colours = levels[None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    probe = Image.fromarray(colours)
    change = np.asarray(transform.apply(probe)).astype(int) - np.asarray(probe.convert("RGB"))
    return int(np.abs(change).max())
