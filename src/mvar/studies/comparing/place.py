"""Which process of how many works on a study, and what it takes of the work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.distributed as dist

IN_TORCHRUN = "TORCHELASTIC_USE_AGENT_STORE"  # its processes share a store


@dataclass(frozen=True)
class Place:
    """Which process of how many works on a study, and on which device."""

    rank: int = 0
    ranks: int = 1
    device: str | None = None

    @classmethod
    def of_torchrun(cls, device: str | None) -> "Place":
        """By torchrun's variables; alone without them. Each process of a machine with GPUs takes its own."""
        rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if device in (None, "cuda") and ranks > 1 and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        return cls(rank, ranks, device)

    def share(self, name: str, count: int) -> Iterator[int]:
        """The numbers below `count` that this process takes of a job; a job's name is used once.

        Processes of torchrun take the next number that none has taken, as runs differ in length and some are there
        already; others take every ranks-th.
        """
        if IN_TORCHRUN not in os.environ:
            yield from range(self.rank, count, self.ranks)
            return
        while (number := self._store.add(name, 1) - 1) < count:
            yield number

    @cached_property
    def _store(self) -> dist.Store:
        store, _, _ = next(dist.rendezvous("env://"))
        return dist.PrefixStore(f"studies/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


@contextmanager
def by_itself() -> Iterator[None]:
    """Within it, this process trains by itself, even if torchrun has started several."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
