"""Which process of how many works on a study, and what it takes of the work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import torch
import torch.distributed as dist

from mvar.checkpoint.placement import find_device
from mvar.training.stopping import Stopped

AGAIN = "run the same command again to continue"  # how a message ends
_jobs = count()  # of this process


@dataclass(frozen=True)
class Place:
    """Which process of how many works on a study, and on which device."""

    rank: int = 0
    ranks: int = 1
    device: str | None = None

    @classmethod
    def of_torchrun(cls, device: str | None) -> "Place":
        """By torchrun's variables; alone without them. Each process of a machine with GPUs takes its own.

        Raises:
            ValueError: there is no such device.
        """
        if device is not None:
            find_device(device)
        rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if device in (None, "cuda") and ranks > 1 and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        return cls(rank, ranks, device)

    def share(self, pieces: int) -> Iterator[int]:
        """The numbers of a job's pieces that this process takes; every process calls it for the same jobs in turn.

        Processes that share torchrun's store take the next number that none has taken, as runs differ in length and
        some are recorded already. Others take every ranks-th, and so do those that torchrun may restart: a counter
        would not tell which numbers ended with a process.

        Raises:
            Stopped: torchrun has ended.
        """
        job, given = f"studies/{next(_jobs)}", os.environ.get
        if given("TORCHELASTIC_USE_AGENT_STORE") != "True" or given("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            yield from range(self.rank, pieces, self.ranks)
            return
        while (number := self._next(job)) < pieces:
            yield number

    def _next(self, job: str) -> int:
        try:
            return self._store.add(job, 1) - 1
        except dist.DistError as error:
            raise Stopped(f"torchrun has ended; {AGAIN}", 1) from error

    @cached_property
    def _store(self) -> dist.Store:
        store, _, _ = next(dist.rendezvous("env://"))
        return store


@contextmanager
def by_itself() -> Iterator[None]:
    """Within it, this process trains by itself, even if torchrun has started several."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
