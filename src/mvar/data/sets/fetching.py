"""Fetching a set with the tool that distributes it, and which version of the icons."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mvar.text import shown

NPM_PACKAGE = "@iconify/json"
VERSION = "2.2.535"  # whose icons docs/data.md counts


@contextmanager
def fetched(script: str, argument: str, named: str, fix: str) -> Iterator[Path]:
    """A folder, deleted after use, in which a shell script has run with one argument.

    Raises:
        ValueError: it failed; the line begins with `named`, says why, and ends with `fix`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = ["sh", "-c", script, "sh", argument]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, errors="replace")
        if done.returncode:
            said = shown(" ".join(done.stderr.split()), 200)
            raise ValueError(f"{named} could not be downloaded ({said}); {fix}")
        yield Path(scratch)
