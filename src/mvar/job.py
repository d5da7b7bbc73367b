"""Work in pieces that can be interrupted, resumed, and divided among processes.

The settings are written before any work; a run that resumes must have the same. Pieces that are complete are kept, the
others made again. Processes divide the pieces and communicate through the folder. Rank 0 waits for the others, and then
does what is to be done once.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout

from mvar.progress import track
from mvar.settings import raise_problems
from mvar.text import shown, some

Piece = TypeVar("Piece")

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 6 * 60 * 60  # how long rank 0 waits for the next piece
NOTICE_SECONDS = 5 * 60  # between two lines that say that it waits
MOST_SHOWN = 60  # characters of a value in a message
UNFINISHED = f".*.{8 * '[0-9a-f]'}.partial.*"  # what `mvar.files.atomic_write` is writing, or was when it was killed


def check_same(
    before: Mapping[str, Any], now: Mapping[str, Any], field: str, path: str | Path, free: Iterable[str] = ()
) -> None:
    """Refuse to resume a job with other settings than it was started with, but for the `free` ones.

    Raises:
        ValueError: a line for each setting that differs; `field` is the option that names the job's place, `path`.
    """
    old, new = (_flat(json.loads(json.dumps(settings))) for settings in (before, now))
    raise_problems(
        f"{name} = {_cut(value)}: {field} = {str(path)!r} was started with {_cut(old.get(name))}; "
        f"give the same settings, or another {field}"
        for name, value in new.items()
        if name not in free and old.get(name) != value
    )


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of this file, which ends with the process.

    Raises:
        ValueError: another process holds it; with this message.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ValueError(refusal) from error
    try:
        yield
    finally:
        lock.release()


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of mappings inside mappings by dotted names."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": deep for inner, deep in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def _cut(value: Any) -> str:
    return shown(repr(value), MOST_SHOWN)


@dataclass(frozen=True, kw_only=True)
class Job(Generic[Piece]):
    """The pieces of a job.

    Attributes:
        folder: where the pieces are written.
        pieces: all of them.
        noun: what they are called, in the plural.
        name: a piece's own name.
        is_complete: whether a piece is there and undamaged.
    """

    folder: Path
    pieces: Sequence[Piece]
    noun: str
    name: Callable[[Piece], str]
    is_complete: Callable[[Piece], bool]

    def make_missing(
        self, make: Callable[[Piece], object], own: Iterable[int] | None = None, shown: int | None = None
    ) -> None:
        """Make this process's pieces that are not complete.

        Args:
            own: numbers of its pieces, all by default.
            shown: how many these are, where progress is shown.
        """
        own = range(len(self.pieces)) if own is None else own
        for i in own if shown is None else track(own, shown, self.noun):
            if not self.is_complete(self.pieces[i]):
                make(self.pieces[i])

    def wait(self) -> None:
        """Wait until all pieces are complete, and say so now and then.

        Raises:
            TimeoutError: nothing was written for PATIENCE_SECONDS.
        """
        seen, missing = 0, list(self.pieces)
        since = noticed = time.monotonic()
        while missing := [piece for piece in missing if not self.is_complete(piece)]:
            now = time.monotonic()
            if len(missing) != seen:
                seen, since = len(missing), now
            lacking = (
                f"{len(missing)} of {len(self.pieces)} {self.noun} are missing ({some([*map(self.name, missing)])})"
            )
            if now - since > PATIENCE_SECONDS:
                raise TimeoutError(
                    f"{self.folder}: nothing was written for {PATIENCE_SECONDS / 3600:g} hours, and {lacking}; see "
                    "why the other processes stopped, then run the same command again: it continues"
                )
            if now - noticed > NOTICE_SECONDS:
                print(
                    f"waiting for other processes: {lacking}, the last was written {now - since:.0f} s ago",
                    file=sys.stderr,
                )
                noticed = now
            time.sleep(POLL_SECONDS)

    def clean(self) -> None:
        """Delete the unfinished files of processes that were killed."""
        for path in self.folder.glob(UNFINISHED):
            path.unlink(missing_ok=True)
