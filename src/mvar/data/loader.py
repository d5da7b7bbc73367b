"""The batches of training, read ahead while a step trains.

Shapes: B images of one slice, which is what one rank sees in one micro-batch of an optimizer step.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mvar.data.order import batch_indices
from mvar.data.workers import in_threads


class Source(Protocol):
    """Images or token maps, by their index."""

    def __len__(self) -> int:
        """Number of images."""

    def batch(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows and class indices int64 (B,), zeros where there are no classes; see `Batch`.

        Args:
            epochs_B: the epoch of each image, which decides its augmentation; None: no augmentation.
        """

    def name(self, i: int) -> str:
        """An image's name in messages."""


class Batch(NamedTuple):
    """One slice of a step's images.

    Attributes:
        rows: uint8 pixels (B, 3, h, w), tokens (B, L), or image indices (B,) of remembered tokens.
        labels_B: class indices, int64.
        positions_B: each image's position in the endless stream of samples, int64. Training noise that is keyed by it
            is the same on any number of ranks and micro-batches.
    """

    rows: Tensor
    labels_B: Tensor
    positions_B: Tensor


@dataclass(frozen=True)
class Slices:
    """One rank's slices of a batch: consecutive, of equal size, one for each micro-batch.

    Attributes:
        batch_size: images per optimizer step across all ranks.
        micro_batches: gradient accumulation steps.

    Raises:
        ValueError: the batch does not divide evenly, or there is no such rank.
    """

    batch_size: int
    rank: int = 0
    ranks: int = 1
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank = {self.rank}: must lie in [0, {self.ranks}), ranks = {self.ranks}")
        slices = self.ranks * self.micro_batches
        if self.batch_size % slices or self.micro_batches < 1:
            raise ValueError(
                f"batch_size = {self.batch_size}: does not divide into ranks * micro-batches = {self.ranks} * "
                f"{self.micro_batches} equal slices; give a multiple of {max(slices, 1)}"
            )

    @property
    def size(self) -> int:
        """Images of one slice."""
        return self.batch_size // (self.ranks * self.micro_batches)

    def of(self, micro_batch: int) -> slice:
        """Where in the batch the slice of a micro-batch lies."""
        first = (self.rank * self.micro_batches + micro_batch) * self.size
        return slice(first, first + self.size)

    def positions(self, step: int, micro_batch: int) -> Tensor:
        """Positions in the endless stream of samples, int64 (B,)."""
        places = self.of(micro_batch)
        return torch.arange(places.start, places.stop) + step * self.batch_size


class Loader:
    """The slices of one rank, in the order of `mvar.data.order`: a pure function of (seed, step, micro-batch)."""

    def __init__(self, source: Source, slices: Slices, seed: int, workers: int = 2) -> None:
        """`workers` threads read ahead, one slice each; 0 reads on demand. Results do not depend on it."""
        self.source, self.slices, self.seed, self.workers = source, slices, seed, workers
        self._next = 0  # step * micro_batches + micro_batch of the slice that comes next
        self._batches = self._ahead_from(0)

    def batch(self, step: int, micro_batch: int = 0) -> Batch:
        """This rank's slice; any step may be asked for, the following slices are read ahead.

        Raises:
            ValueError: as `Source.batch` does, when its slice is asked for.
        """
        wanted = step * self.slices.micro_batches + micro_batch
        if wanted != self._next:
            self.close()
            self._batches = self._ahead_from(wanted)
        self._next = -1  # an error ends the reading
        batch = next(self._batches)
        self._next = wanted + 1
        return batch

    def names(self, step: int) -> list[str]:
        """Names of this rank's images of a step, over all micro-batches."""
        indices_B, _ = batch_indices(len(self.source), self.slices.batch_size, self.seed, step)
        own = slice(self.slices.of(0).start, self.slices.of(self.slices.micro_batches - 1).stop)
        return [self.source.name(i) for i in indices_B[own].tolist()]

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep to resume: nothing, the step decides all."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from what `state` returned."""

    def close(self) -> None:
        """End the threads and drop what was read ahead."""
        self._batches.close()

    def _ahead_from(self, number: int) -> Generator[Batch, None, None]:
        return in_threads(self._read, count(number), self.workers, self.workers)

    def _read(self, number: int) -> Batch:
        step, micro_batch = divmod(number, self.slices.micro_batches)
        own = self.slices.of(micro_batch)
        indices_B, epochs_B = batch_indices(len(self.source), self.slices.batch_size, self.seed, step)
        rows, labels_B = self.source.batch(indices_B[own], epochs_B[own])
        return Batch(rows, labels_B, self.slices.positions(step, micro_batch))
