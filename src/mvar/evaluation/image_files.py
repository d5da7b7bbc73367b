"""The images of a folder, looked at without decoding them, then decoded a batch at a time.

Shapes: N images, B images of a batch, H W pixels.
"""

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mvar.data.images.containers import take_apart
from mvar.data.images.decoding import decode, read_bytes
from mvar.data.images.folders import ImageFolder
from mvar.data.workers import in_threads
from mvar.progress import track


class ImageFiles:
    """Images of one size.

    Attributes:
        shape: (H, W).
        lossy: what those are that lost something when they were written, by name; whatever their suffix says.
    """

    def __init__(self, folder: ImageFolder, field: str) -> None:
        """Read every file without decoding it: is it whole, and which is its fingerprint?

        Raises:
            ValueError: one line: a file that is no image or is cut off, a PNG whose checksums are wrong, or images of
                several sizes.
        """
        self._named = f"{field} = {str(folder.root)!r}"
        self._paths = folder.paths
        self._names = [path.relative_to(folder.root).as_posix() for path in folder.paths]
        looked: list[_Looked] = []
        found = track(in_threads(_look, self._paths), len(self._paths), "looking at images")
        for name, seen in zip(self._names, found, strict=True):
            if isinstance(seen, str):
                raise self._unusable(name, seen)
            looked.append(seen)
        self.lossy = {name: seen.lossy for name, seen in zip(self._names, looked, strict=True) if seen.lossy}
        self._marks = [seen.mark for seen in looked]
        width, height = looked[0].size
        self.shape = height, width
        if others := [i for i, seen in enumerate(looked) if seen.size != (width, height)]:
            i = others[0]
            raise ValueError(
                f"{self._named}: {self._names[i]!r} has {looked[i].size[0]}x{looked[i].size[1]} pixels, "
                f"{self._names[0]!r} {width}x{height} ({len(others)} of {len(looked)} differ); give images of one size"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def fingerprint(self) -> str:
        """A hash of each file's name and content."""
        digest = hashlib.sha256()
        for name, mark in zip(self._names, self._marks, strict=True):
            digest.update(os.fsencode(name) + b"\0" + mark)
        return digest.hexdigest()

    def rows(self, rows: Sequence[int]) -> np.ndarray:
        """Some of the images, uint8 (B, H, W, 3).

        Raises:
            ValueError: one line with the name of one that cannot be decoded.
        """
        pixels_BHW3 = np.empty((len(rows), *self.shape, 3), np.uint8)
        found = in_threads(_decoded, [self._paths[i] for i in rows])
        for out_HW3, i, image_HW3 in zip(pixels_BHW3, rows, found, strict=True):
            if isinstance(image_HW3, str):
                raise self._unusable(self._names[i], image_HW3)
            if image_HW3.shape != out_HW3.shape:
                raise self._unusable(self._names[i], "has another size than before")
            out_HW3[:] = image_HW3
        return pixels_BHW3

    def _unusable(self, name: str, reason: str) -> ValueError:
        return ValueError(f"{self._named}: {name!r}: {reason}; replace it or remove it")


class _Looked(NamedTuple):
    """What a file tells without being decoded."""

    lossy: str | None  # "JPEG", "lossy WebP"
    size: tuple[int, int]  # width and height, upright
    mark: bytes


def _look(path: Path) -> _Looked | str:
    """What a file tells without decoding it; the reason where it cannot be used."""
    try:
        content = read_bytes(path)
        container = take_apart(content)
        if not container.complete:
            decode(io.BytesIO(content))  # what follows an image does no harm
        return _Looked(container.lossy, container.upright_size, hashlib.sha256(content).digest())
    except ValueError as error:
        return str(error)


def _decoded(path: Path) -> np.ndarray | str:
    """The pixels of a file (H, W, 3), or the reason why there are none."""
    try:
        return np.asarray(decode(path))
    except ValueError as error:
        return str(error)
