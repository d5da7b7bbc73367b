"""Image folders: which files are images of which class, and how any of them becomes plain RGB.

A class-per-folder set is `root/<class>/**/*.png`; a flat folder or a single class folder is a set without classes.
"""

import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from mvar.data.tokens import is_cache

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")  # what a file may hold, whatever its suffix says
MIN_SIDE = 8  # smaller images hold nothing to learn from
MAX_ASPECT = 100  # a longer strip would grow beyond all memory when its short side is enlarged


@dataclass(frozen=True)
class ImageFolder:
    """An index of image files in natural order, class by class.

    Attributes:
        root: the folder.
        paths: the image files; none has been opened yet.
        labels: one class index a file, all 0 where there are no classes.
        classes: class names in natural order; empty for a flat folder or a single class.
    """

    root: Path
    paths: list[Path]
    labels: list[int]
    classes: list[str]

    @classmethod
    def scan(cls, folder: str | Path, field: str = "data") -> "ImageFolder":
        """List the images of a folder; hidden files and folders are passed over.

        Args:
            field: the option that named the folder, for messages.

        Raises:
            ValueError: one line with field, value and fix where the folder is missing, holds no images, or holds
                images both beside and inside its class folders.
        """
        root = Path(folder)
        named = f"{field} = {str(folder)!r}"
        if not root.is_dir():
            problem = "is a file" if root.exists() else "does not exist"
            raise ValueError(f"{named}: {problem}; give a folder of images or of class folders")
        loose = _images(entry for entry in root.iterdir() if not entry.is_dir())
        folders = {entry: _images(_walk(entry)) for entry in visible_folders(root)}
        empty = [entry.name for entry, paths in folders.items() if not paths]
        folders = {entry: paths for entry, paths in folders.items() if paths}
        if not loose and not folders:
            if is_cache(root):
                raise ValueError(
                    f"{named}: is a token cache, which only train generator takes, as --data; "
                    "give the folder of images that it was made from"
                )
            raise ValueError(f"{named}: holds no images; put {' '.join(SUFFIXES)} files into it or into class folders")
        if loose and folders:
            raise ValueError(
                f"{named}: holds {len(loose)} images beside {len(folders)} class folders; "
                "move them into a class folder or away"
            )
        if empty and folders:
            warnings.warn(f"{named}: folders without images are no classes: {', '.join(empty)}", stacklevel=2)
        if len(folders) <= 1:
            paths = loose or next(iter(folders.values()))
            return cls(root, paths, [0] * len(paths), [])
        return cls(
            root,
            [path for paths in folders.values() for path in paths],
            [label for label, paths in enumerate(folders.values()) for _ in paths],
            [_class_name(entry) for entry in folders],
        )


def visible_folders(root: Path) -> list[Path]:
    """The folders inside `root` that are not hidden, in natural order."""
    return sorted((entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."), key=natural)


def natural(path: str | Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key: numbers by value, letters without case, then the exact name, so that no order is left to the disk."""
    text = unicodedata.normalize("NFC", str(path))
    parts = [
        (0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"([0-9]+)", text)
    ]
    return parts, str(path)


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


def report(bad: Sequence[tuple[os.PathLike[str], str]], total: int, root: Path, most: int = 20) -> str:
    """Say which images of a folder cannot be used and why, the first `most` by name."""
    lines = [f"{len(bad)} of {total} images in {str(root)!r} cannot be used:"]
    lines += [f"  {os.path.relpath(path, root)!r}: {reason}" for path, reason in bad[:most]]
    if len(bad) > most:
        lines.append(f"  ... and {len(bad) - most} more")
    return "\n".join(lines)


def _rgb(image: Image.Image, background: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        sixteen = np.asarray(image).astype(np.float32)
        return Image.fromarray((sixteen / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, background), clear).convert("RGB")
    return image.convert("RGB")


def _images(entries: Iterable[Path]) -> list[Path]:
    """Those files that look like images, in natural order; a broken link counts, so that it is reported."""
    files = [path for path in entries if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    return sorted(files, key=natural)


def _walk(folder: Path) -> list[Path]:
    """All files under a folder, hidden folders left out, links to folders not followed."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(parent, name) for name in files]
    return found


def _class_name(folder: Path) -> str:
    """The folder's name as text; bytes that are not UTF-8 become question marks, so that it can be written anywhere."""
    return unicodedata.normalize("NFC", os.fsencode(folder.name).decode("utf-8", errors="replace"))
