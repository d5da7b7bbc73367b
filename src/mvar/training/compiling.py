"""torch.compile for training: what is compiled, and what a run waits for meanwhile."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from mvar.generator.network import Generator, called
from mvar.ops.mamba import scan

USUAL = (
    "the blocks are compiled during this step. On a CPU that takes about a minute, longer where it has other work, "
    "and saves 0 to 11 % of each step after it"
)


def check_compiler(device: torch.device) -> None:
    """Raise ValueError where torch.compile would find no C++ compiler, which it needs on a CPU."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(name) for name in names if name):
        raise ValueError("compile = True: finds no C++ compiler here; install g++, or leave compile out")


def compile_blocks(generator: Generator, backend: str | Callable[..., Any] = "inductor") -> None:
    """Run the blocks through torch.compile where there is a gradient, all but Mamba's scan, which has its own.

    One call is compiled for all blocks: those of one kind share the result. Without a gradient, in validation and
    drawing, blocks run as they are: `mvar.ops.native` serves them.
    """
    eager = torch.compiler.disable(scan)
    for block in generator.each_block():
        if block.mamba is not None:
            block.mamba.scan = eager
    generator.differentiated = torch.compile(called, backend=backend)


class Compiling:
    """Says on stderr what a step waits for where its blocks are compiled first."""

    def __init__(self, speaks: bool) -> None:
        """Args:
        speaks: whether to say anything.
        """
        self.speaks = speaks
        self._seen: set[int] = set()
        self._begun: float | None = None

    def before_step(self, scales: int) -> None:
        """To be called with the number of maps in use: each has tokens of its own, for which blocks are compiled."""
        if self.speaks and scales not in self._seen:
            self._seen.add(scales)
            self._begun = time.monotonic()
            print(f"compile: {USUAL}", file=sys.stderr, flush=True)

    def after_step(self) -> None:
        """To be called after the update."""
        if self._begun is not None:
            print(f"compile: done; the step took {time.monotonic() - self._begun:.0f} s", file=sys.stderr, flush=True)
            self._begun = None
