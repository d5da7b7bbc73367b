"""Arrays in an .npz, read row by row: 50,000 images of 256 pixels are 10 GB, which need not fit into memory.

Shapes: N rows (images) of an array.
"""

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np

# What a damaged archive makes zipfile and numpy raise, an encrypted or strangely packed one included.
DAMAGE = (BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError)


class Header(NamedTuple):
    """What an array says of itself before its values."""

    dtype: np.dtype
    shape: tuple[int, ...]
    in_rows: bool  # one row after another, as in C order
    start: int  # of the values in the member


class Archive:
    """The arrays of one .npz, with `headers` by their names without ".npy". Not thread-safe."""

    def __init__(self, path: Path, field: str) -> None:
        """Open the archive and read the header of each array.

        Raises:
            ValueError: one line: it is missing, no .npz or truncated, or an array is damaged or of Python objects.
        """
        self.named = f"{field} = {str(path)!r}"  # for messages
        try:
            self._zip = ZipFile(path)
        except FileNotFoundError as error:
            raise ValueError(f"{self.named}: does not exist; give a folder of images or an .npz") from error
        except DAMAGE as error:
            raise ValueError(f"{self.named}: is no .npz, or truncated ({error}); write or fetch it again") from error
        arrays = [info for info in self._zip.infolist() if info.filename.endswith(".npy")]  # other members are ignored
        self._infos = {info.filename.removesuffix(".npy"): info for info in arrays}
        self.headers = {name: self._header(name) for name in self._infos}
        self._streams: dict[str, IO[bytes]] = {}

    def fingerprint(self) -> str:
        """A hash of each array's name, size and CRC-32 as the archive's directory has them: no array is read."""
        listing = sorted((name, info.file_size, info.CRC) for name, info in self._infos.items())
        return hashlib.sha256(repr(listing).encode()).hexdigest()

    def array(self, name: str) -> np.ndarray:
        """A whole array; raises ValueError where it is damaged."""
        with self._undamaged(name), self._zip.open(self._infos[name]) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Some rows of an array, (len(rows), ...); raises ValueError where they are damaged.

        Going forward is quick, going back means to read from the start again.
        """
        header = self.headers[name]
        size = math.prod(header.shape[1:]) * header.dtype.itemsize
        content = bytearray()
        with self._undamaged(name):
            file = self._streams.get(name) or self._streams.setdefault(name, self._zip.open(self._infos[name]))
            for row in rows:
                file.seek(header.start + row * size)
                content += file.read(size)
        return np.frombuffer(content, header.dtype).reshape(len(rows), *header.shape[1:])

    def _header(self, name: str) -> Header:
        info = self._infos[name]
        with self._undamaged(name), self._zip.open(info) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            start = file.tell()
        if dtype.hasobject:
            raise ValueError(f"{self.named}: {name} holds Python objects, which are not read; save plain numbers")
        with self._undamaged(name):
            if info.file_size != start + math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{info.file_size} bytes do not fit its shape {shape}")
        return Header(dtype, shape, not fortran or len(shape) < 2, start)

    @contextmanager
    def _undamaged(self, name: str) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise ValueError(f"{self.named}: {name} is damaged ({error}); write or fetch the file again") from error
