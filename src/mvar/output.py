"""How a command ends: bad input as lines on stderr, and an exit status."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from mvar.text import MOST_SHOWN, counted, shown

CLOSED = 141  # as programs end that write where nobody reads, such as into `head`
MOST_LINES = 20  # of what is wrong
# What is wrong with a path itself, in contrast to a full disk or a folder that vanished.
BAD_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR)


@contextmanager
def safe_output() -> Iterator[None]:
    """Within, what the encoding of stdout and stderr lacks is escaped; bad input ends with its lines and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        if sys.stdout is not None:  # None where it is closed from the start
            sys.stdout.flush()
    except (ValueError, FloatingPointError) as error:
        refuse(str(error))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at its end
            sys.exit(CLOSED)
        print(f"mvar: {error}", file=sys.stderr)
        sys.exit(2 if error.errno in BAD_PATH else 1)


def refuse(problems: str, before: str = "mvar", after: str = "") -> NoReturn:
    """Print what is wrong, a line for each problem, and exit with status 2.

    Args:
        problems: lines.
        before: the command's name.
        after: the end of each line.
    """
    lines = shown(problems, MOST_SHOWN).split("\n")
    for line in lines[:MOST_LINES]:
        print(f"{before}: {line}{after}", file=sys.stderr)
    if len(lines) > MOST_LINES:
        print(f"{before}: and {counted(len(lines) - MOST_LINES, 'more problem')}", file=sys.stderr)
    sys.exit(2)
