"""Files: their hash, and writing files and folders atomically: an interruption leaves the old content or the new.

Everything is written under a hidden name beside its target (the same file system) and renamed when complete. Checks of
where something can be written create nothing: a folder is created with the first file in it.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def file_sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write(partial)` on a hidden sibling of `path`, then rename it to `path`, replacing what was there.

    The sibling keeps the suffix, as many writers choose the format by it. If `write` fails, `path` is untouched. A
    missing folder is created.
    """
    path = Path(path)
    partial = _sibling(path)
    with made_folder(path.parent):
        try:
            partial.touch()
            mode = partial.stat().st_mode
            write(partial)
            partial.chmod(mode)  # some writers (safetensors) leave a file that only its owner may read
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def cache_folder(name: str) -> Path:
    """The folder `name`, which may be missing, in `$XDG_CACHE_HOME/mvar` or else `~/.cache/mvar`.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mvar", name)


def read_bounded(path: str | Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        ValueError: it is larger, or is not a file.
        OSError: it cannot be read.
    """
    if not os.path.isfile(path):  # opening a pipe would wait forever
        raise ValueError("is a broken link" if os.path.islink(path) else "is not a file")
    if (size := os.path.getsize(path)) > most:
        raise ValueError(f"has {size:,} bytes, more than {most:,}")
    return Path(path).read_bytes()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically; what UTF-8 cannot hold is escaped as in JSON, as in file names."""
    content = text.encode("utf-8", "backslashreplace")
    atomic_write(path, lambda partial: partial.write_bytes(content))


def atomic_folder(path: str | Path, write: Callable[[Path], object], field: str = "out") -> None:
    """Call `write(partial)` on an empty hidden sibling folder of `path`, then rename it to `path`.

    Raises:
        ValueError: `path` is a file or a folder that is not empty, or cannot be written.
    """
    path = new_folder(path, field)
    partial = _sibling(path)
    with made_folder(path.parent):
        partial.mkdir()
        try:
            write(partial)
            if path.exists():
                path.rmdir()
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def made_folder(path: Path) -> Iterator[Path]:
    """Create a folder and its missing parents; if the body fails, remove those that it created and that are empty."""
    missing = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield path
    except BaseException:
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()
        raise


def new_folder(path: str | Path, field: str) -> Path:
    """Check that a folder does not exist yet, or is empty, and can be written.

    Raises:
        ValueError: one line with the field, its value and the fix.
    """
    path = _writable(path, field, "give a new name in a writable folder")
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{field} = {str(path)!r}: already exists and is not an empty folder; give a new name")
    return path


def writable_folder(path: str | Path, field: str) -> Path:
    """Check that files can be written into a folder, which exists or can be created; raises as `new_folder`."""
    return _writable(path, field, "give a writable folder", inside=True)


def writable_file(path: str | Path, field: str) -> Path:
    """Check that a file can be written, whose folder exists or can be created; raises as `new_folder`."""
    path = _writable(path, field, "give a name in a writable folder")
    if path.is_dir():
        raise ValueError(f"{field} = {str(path)!r}: is a folder; give a file's name")
    return path


def _writable(path: str | Path, field: str, fix: str, inside: bool = False) -> Path:
    """Check that a file or folder can be created here, or in it; creates nothing."""
    path, full = Path(path), Path(path).absolute()
    here = next(place for place in ((full, *full.parents) if inside else full.parents) if os.path.lexists(place))
    if not (here.is_dir() and os.access(here, os.W_OK)):
        reason = "is not writable" if here.is_dir() else "is no folder"
        raise ValueError(f"{field} = {str(path)!r}: cannot be written ({str(here)!r} {reason}); {fix}")
    return path


def _sibling(path: Path) -> Path:
    # Only the start of a long name: this one must not be longer than a file system allows.
    return path.with_name(f".{path.stem[:40]}.{uuid.uuid4().hex[:8]}.partial{path.suffix}")
