"""Image folders: which files are images of which class.

A class-per-folder set is `root/<class>/**/*.png`; a flat folder or a single class folder is a set without classes.
"""

import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mvar.data.tokens import is_cache

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


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


def report(bad: Sequence[tuple[os.PathLike[str], str]], total: int, root: Path, most: int = 20) -> str:
    """Say which images of a folder cannot be used and why, the first `most` by name."""
    lines = [f"{len(bad)} of {total} images in {str(root)!r} cannot be used:"]
    lines += [f"  {os.path.relpath(path, root)!r}: {reason}" for path, reason in bad[:most]]
    if len(bad) > most:
        lines.append(f"  ... and {len(bad) - most} more")
    return "\n".join(lines)


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
