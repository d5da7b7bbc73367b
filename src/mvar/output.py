"""What a command prints: safe to look at whatever it holds, and bad input as lines with an exit status."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from mvar.text import MOST_SHOWN, counted, shown

MOST_LINES = 20  # of what is wrong
CLOSED = 141  # as programs end that write where nobody reads, such as into `head`
# What is wrong with a path itself, in contrast to a full disk or a folder that vanished.
BAD_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)
_REDRAWN = re.compile(r"(\r|\x1b\[A)")  # how a progress bar returns to its line


class _Safe:
    """A text stream that escapes what could act on a terminal, and what its encoding lacks.

    Where the other end is closed, the command ends without a word.
    """

    def __init__(self, stream: TextIO, most: int | None = None) -> None:
        self._stream, self._most = stream, most

    def write(self, text: str) -> int:
        bar = self._most is not None and _REDRAWN.match(text) and self._stream.isatty()
        parts = _REDRAWN.split(text) if bar else [text]
        safe = "".join(part if bar and _REDRAWN.fullmatch(part) else shown(part, self._most) for part in parts)
        encoding = self._stream.encoding or "utf-8"
        self._guarded(self._stream.write, safe.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self._guarded(self._stream.flush)

    def _guarded(self, act: Any, *arguments: str) -> None:
        try:
            act(*arguments)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # else Python tries again at its end
            if isinstance(error, BrokenPipeError):
                sys.exit(CLOSED)
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def safe_output() -> Iterator[None]:
    """Within, what goes to stdout and stderr is safe to print; bad input ends with its lines and status 2.

    Lines of stderr are cut to a readable length.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout = sys.stdout and _Safe(sys.stdout)  # None where it is closed from the start
    sys.stderr = sys.stderr and _Safe(sys.stderr, MOST_SHOWN)
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except (ValueError, FloatingPointError) as error:
        refuse(str(error))
    except OSError as error:
        print(f"mvar: {error}", file=sys.stderr)
        sys.exit(2 if error.errno in BAD_PATH else 1)
    finally:
        sys.stdout, sys.stderr = streams


def refuse(problems: str, before: str = "mvar", after: str = "") -> NoReturn:
    """Print what is wrong, a line for each problem, and exit with status 2.

    Args:
        problems: lines.
        before: the command's name.
        after: the end of each line.
    """
    lines = problems.split("\n")
    for line in lines[:MOST_LINES]:
        print(f"{before}: {line}{after}", file=sys.stderr)
    if len(lines) > MOST_LINES:
        print(f"{before}: and {counted(len(lines) - MOST_LINES, 'more problem')}", file=sys.stderr)
    sys.exit(2)
