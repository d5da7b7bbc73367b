"""Arrays in an .npz, read where they lie: 50,000 images of 256 pixels are 10 GB, which no memory has to hold.

Shapes: N rows (images) of an array.
"""

import hashlib
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np

# What a damaged archive makes zipfile and numpy raise, an encrypted or strangely packed one included.
DAMAGE = (BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype
    in_rows: bool  # one row after another, which Fortran's order is not
    start: int  # of the values in the member


class Archive:
    """The arrays of one .npz. Not for several threads at once.

    Attributes:
        named: the option and its value, for messages.
        names: the arrays, without ".npy".
    """

    def __init__(self, path: Path, field: str) -> None:
        """Open the archive and read the header of each array.

        Raises:
            ValueError: one line: not there, no .npz, truncated, or an array that is damaged or of Python objects.
        """
        self.named = f"{field} = {str(path)!r}"
        try:
            self._zip = ZipFile(path)
        except FileNotFoundError as error:
            raise ValueError(f"{self.named}: does not exist; give a folder of images or an .npz") from error
        except DAMAGE as error:
            raise ValueError(f"{self.named}: is no .npz, or truncated ({error}); write or fetch it again") from error
        arrays = [info for info in self._zip.infolist() if info.filename.endswith(".npy")]  # whatever else lies there
        self._infos = {info.filename.removesuffix(".npy"): info for info in arrays}
        self._headers = {name: self._header(name) for name in self._infos}
        self._streams: dict[str, IO[bytes]] = {}

    @property
    def names(self) -> list[str]:
        return list(self._infos)

    def described(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Dtype and shape of an array."""
        return self._headers[name].dtype, self._headers[name].shape

    def fingerprint(self) -> str:
        """A hash of each array's name, size and CRC-32 as the archive's directory has them: no array is read."""
        listing = sorted((name, info.file_size, info.CRC) for name, info in self._infos.items())
        return hashlib.sha256(repr(listing).encode()).hexdigest()

    def array(self, name: str) -> np.ndarray:
        """All of an array.

        Raises:
            ValueError: one line: the array is damaged.
        """
        try:
            with self._zip.open(self._infos[name]) as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except DAMAGE as error:
            raise self._damaged(name, error) from error

    def rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Some rows of an array, (len(rows), ...). Going forward is quick; to go back is to read from the start again.

        Raises:
            ValueError: one line: the array is damaged there.
        """
        header = self._headers[name]
        size = math.prod(header.shape[1:]) * header.dtype.itemsize
        content = bytearray()
        try:
            file = self._streams.get(name) or self._streams.setdefault(name, self._zip.open(self._infos[name]))
            for row in rows:
                file.seek(header.start + row * size)
                content += file.read(size)
        except DAMAGE as error:
            raise self._damaged(name, error) from error
        return np.frombuffer(content, header.dtype).reshape(len(rows), *header.shape[1:])

    def _header(self, name: str) -> _Header:
        info = self._infos[name]
        try:
            with self._zip.open(info) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read(file)
                start = file.tell()
        except DAMAGE as error:
            raise self._damaged(name, error) from error
        if dtype.hasobject:
            raise ValueError(f"{self.named}: {name} holds Python objects, which are not read; save plain numbers")
        if info.file_size != start + math.prod(shape) * dtype.itemsize:
            raise self._damaged(name, f"{info.file_size} bytes do not fit its shape {shape}")
        return _Header(shape, dtype, not fortran or len(shape) < 2, start)

    def in_rows(self, name: str) -> bool:
        """Whether an array lies row by row, as `rows` needs it."""
        return self._headers[name].in_rows

    def _damaged(self, name: str, reason: object) -> ValueError:
        return ValueError(f"{self.named}: {name} is damaged ({reason}); write or fetch the file again")
