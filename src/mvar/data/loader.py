"""The batches of training, read ahead while a step trains.

Shapes: B images of one slice: what one rank sees in one part of a step. A part is a pass forward and backward; more
than one a step accumulate gradients.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mvar.data.order import batch_indices


class Source(Protocol):
    """Images or token maps that can be asked for by their number."""

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 (n,); zeros where there are no classes."""

    @property
    def classes(self) -> list[str]:
        """Class names; empty for a set without classes."""

    def __len__(self) -> int:
        """How many images there are."""

    def batch(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows and labels int64 (B,); see `Batch`.

        Args:
            epochs_B: each image's epoch, from which its augmentation follows; None: without augmentation.
        """

    def name(self, i: int) -> str:
        """What to call an image in a message."""


class Batch(NamedTuple):
    """One slice of a step's images.

    Attributes:
        rows: uint8 pixels (B, 3, h, w), tokens (B, L), or the images' numbers (B,) where tokens are remembered.
        labels_B: class indices, int64.
        positions_B: each image's place in the endless stream of samples, int64. Noise of training that is keyed by it
            is the same on any number of ranks and parts.
    """

    rows: Tensor
    labels_B: Tensor
    positions_B: Tensor


@dataclass(frozen=True)
class Share:
    """Which places of a step's batch are one rank's: a run of them, cut into equal parts.

    Raises:
        ValueError: the batch cannot be cut so, or there is no such rank.
    """

    batch_size: int
    rank: int
    ranks: int
    parts: int

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank = {self.rank}: must lie in [0, {self.ranks}), ranks = {self.ranks}")
        slices = self.ranks * self.parts
        if self.batch_size % slices or self.parts < 1:
            raise ValueError(
                f"batch_size = {self.batch_size}: cannot be cut into ranks * parts = {self.ranks} * {self.parts} equal "
                f"slices; give a multiple of {max(slices, 1)}"
            )

    @property
    def slice_size(self) -> int:
        """Images of one rank in one part."""
        return self.batch_size // (self.ranks * self.parts)

    def places(self, part: int) -> slice:
        """The places of one part in the batch."""
        first = (self.rank * self.parts + part) * self.slice_size
        return slice(first, first + self.slice_size)

    def positions(self, step: int, part: int) -> Tensor:
        """Places in the endless stream of samples, int64 (B,)."""
        places = self.places(part)
        return torch.arange(places.start, places.stop) + step * self.batch_size


class Loader:
    """The slices of one rank, in the order of `mvar.data.order`: a pure function of (seed, step, part)."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        parts: int = 1,
        workers: int = 2,
    ) -> None:
        """Args:
            batch_size: images of a whole step, over all ranks and parts.
            parts: passes in which each rank takes its share of a step.
            workers: threads that read ahead, a slice each; 0 reads when asked. Results do not depend on it.

        Raises:
            ValueError: batch_size does not divide by ranks * parts, or there is no such rank.
        """
        self.source, self.seed, self.workers = source, seed, workers
        self.share = Share(batch_size, rank, ranks, parts)
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._ahead: dict[int, Future[Batch]] = {}  # by step * parts + part, without gaps

    def batch(self, step: int, part: int = 0) -> Batch:
        """This rank's slice of a step; any step may be asked for, the ones after it are read ahead.

        Raises:
            ValueError: as `Source.batch` does, when its slice is asked for.
        """
        wanted = step * self.share.parts + part
        if self._pool is None:
            return self._read(wanted)
        if self._ahead and wanted != next(iter(self._ahead)):
            self._drop()
        for number in range(wanted, wanted + self.workers + 1):
            if number not in self._ahead:
                self._ahead[number] = self._pool.submit(self._read, number)
        return self._ahead.pop(wanted).result()

    def names(self, step: int) -> list[str]:
        """What this rank's images of a step are called, over all parts."""
        indices_B, _ = batch_indices(len(self.source), self.share.batch_size, self.seed, step)
        places = slice(self.share.places(0).start, self.share.places(self.share.parts - 1).stop)
        return [self.source.name(i) for i in indices_B[places].tolist()]

    def state(self) -> dict[str, Any]:
        """What must be remembered to resume: nothing, as the step decides all."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""

    def close(self) -> None:
        """End the threads; what was read ahead is dropped."""
        self._drop()
        if self._pool is not None:
            self._pool.shutdown()

    def _drop(self) -> None:
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()

    def _read(self, number: int) -> Batch:
        step, part = divmod(number, self.share.parts)
        places = self.share.places(part)
        indices_B, epochs_B = batch_indices(len(self.source), self.share.batch_size, self.seed, step)
        rows, labels_B = self.source.batch(indices_B[places], epochs_B[places])
        return Batch(rows, labels_B, self.share.positions(step, part))
