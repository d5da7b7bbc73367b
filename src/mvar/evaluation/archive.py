"""Arrays in an .npz, read row by row: 50,000 images of 256 pixels are 10 GB, which need not fit into memory."""

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple
from zipfile import BadZipFile, ZipFile

import numpy as np


class Header(NamedTuple):
    """What an array says of itself before its values."""

    shape: tuple[int, ...]
    fortran: bool  # whether the last axis varies slowest
    dtype: np.dtype
    start: int  # of the values in the member


class Archive:
    """The arrays of one .npz, with `headers` by their names without ".npy". Not thread-safe."""

    def __init__(self, path: Path, field: str) -> None:
        """Open the archive and read the header of each array.

        Raises:
            ValueError: one line: it is missing, no .npz or cut short.
        """
        self.named = f"{field} = {str(path)!r}"  # for messages
        if not path.exists():
            raise ValueError(f"{self.named}: does not exist; give a folder of images or an .npz")
        self.headers: dict[str, Header] = {}
        self._files: dict[str, IO[bytes]] = {}
        with self._readable():
            self._zip = ZipFile(path)
            formats = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            for member in self._zip.namelist():
                with self._zip.open(member) as file:
                    header = formats[np.lib.format.read_magic(file)](file)
                    self.headers[member.removesuffix(".npy")] = Header(*header, file.tell())

    def fingerprint(self) -> str:
        """A hash of each array's name, size and CRC-32 as the archive's directory has them: no array is read."""
        members = self._zip.infolist()
        listing = sorted((info.filename.removesuffix(".npy"), info.file_size, info.CRC) for info in members)
        return hashlib.sha256(repr(listing).encode()).hexdigest()

    def array(self, name: str) -> np.ndarray:
        """A whole array; raises ValueError where it is damaged."""
        with self._readable(), self._zip.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    def rows(self, name: str, rows: Sequence[int]) -> np.ndarray:
        """Some rows of an array, (len(rows), ...); raises ValueError where they are damaged.

        Going forward is quick, going back means to read from the start again.
        """
        shape, _, dtype, start = self.headers[name]
        size, content = math.prod(shape[1:]) * dtype.itemsize, bytearray()
        with self._readable():
            file = self._files.get(name) or self._files.setdefault(name, self._zip.open(f"{name}.npy"))
            for row in rows:
                file.seek(start + row * size)
                content += file.read(size)
            return np.frombuffer(content, dtype).reshape(len(rows), *shape[1:])

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (BadZipFile, zlib.error, EOFError, OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.named}: is no .npz, or damaged ({error}); write or fetch it again") from error
