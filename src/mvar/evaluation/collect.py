"""Features of all images of a set: a batch at a time, spread over processes, kept in a cache.

Shapes: N images, F pooled features, S spatial features, K classes of the network.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mvar.evaluation.sets import ImageSet
from mvar.features.extractors import VERSION, Extracted, Extractor
from mvar.files import atomic_write
from mvar.machine import check_memory
from mvar.progress import track
from mvar.tensor_files import read_tensors, write_tensors

IMAGE_BYTES = 36  # of a pixel in a network, at least: it and the first maps in float32

Result = TypeVar("Result")


class Processes(Protocol):
    """This process among the others that share the work."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """A small object of each process, in their order, in every process."""

    def gather_on_main(self, value: Any) -> list[Any] | None:
        """An object of each process, in their order, in the process of rank 0; None in the others."""

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Do this in the process of rank 0, and give its result or its ValueError to all."""


class Alone(NamedTuple):
    """The only process."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The object itself."""
        return [value]

    def gather_on_main(self, value: Any) -> list[Any]:
        """The object itself."""
        return [value]

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Do it."""
        return work()


class Features(NamedTuple):
    """What a network sees in a set of images, on the CPU; the last two where it has them."""

    pooled_NF: Tensor
    spatial_NS: Tensor | None = None
    probabilities_NK: Tensor | None = None

    def select(self, rows: Tensor) -> "Features":
        """The images at these positions."""
        spatial_NS, probabilities_NK = (
            None if t is None else t[rows] for t in (self.spatial_NS, self.probabilities_NK)
        )
        return Features(self.pooled_NF[rows], spatial_NS, probabilities_NK)


class Collected(NamedTuple):
    """What became of a set."""

    features: Features | None  # in their order; in the process of rank 0 only
    seconds: float | None  # that it took; None where the cache had them


def collect(
    images: ImageSet,
    extractor: Extractor,
    batch_size: int,
    processes: Processes = Alone(),  # noqa: B008  # a constant
    cache: Path | None = None,
    label: str = "features",
) -> Collected:
    """The features of all images.

    The processes take batches in turn. A batch holds the same images whoever takes it, so that their number changes
    nothing.

    Args:
        images: the set.
        extractor: the network.
        batch_size: images at once.
        processes: that share the work.
        cache: folder in which features are looked for first, and kept.
        label: of the progress bar.

    Raises:
        ValueError: an image that is damaged; in every process.
    """
    file = None if cache is None else cache / f"{_key(images, extractor)}.safetensors"
    kept = _kept(file, images.count) if processes.rank == 0 else None
    if processes.on_main(lambda: kept is not None):  # one process decides for all
        return Collected(kept, None)
    begun = time.perf_counter()
    starts = range(0, images.count, batch_size)
    mine = starts[processes.rank :: processes.size]
    parts: dict[int, Extracted] = {}
    problem = None
    try:
        batch, (height, width) = min(batch_size, images.count), images.shape
        check_memory(IMAGE_BYTES * batch * height * width, f"batch_size = {batch:,}: so many at once", "give fewer")
        for start in track(mine, len(mine), label):
            seen = extractor(images.batch(range(start, min(start + batch_size, images.count))))
            parts[start] = Extracted(*(None if t is None else t.cpu() for t in seen))  # type: ignore[arg-type]
    except ValueError as error:  # the others wait for this one
        problem = error
    for other in processes.gather(problem):
        if other is not None:
            raise other
    gathered = processes.gather_on_main(parts)
    seconds = time.perf_counter() - begun
    if gathered is None:
        return Collected(None, seconds)
    parts = {start: part for found in gathered for start, part in found.items()}
    features = _joined([parts.pop(start) for start in starts])
    if file is not None:
        tensors = {name: tensor for name, tensor in features._asdict().items() if tensor is not None}
        atomic_write(file, lambda partial: write_tensors(tensors, partial))
    return Collected(features, seconds)


def _kept(file: Path | None, count: int) -> Features | None:
    """What the cache has of a set of so many images; None where that is not all of it."""
    if file is None or not file.is_file():
        return None
    try:
        features = Features(**read_tensors(file))
    except (ValueError, TypeError):  # damaged, or another's
        return None
    return features if len(features.pooled_NF) == count else None


def _joined(parts: Sequence[Extracted]) -> Features:
    pooled_NF = torch.cat([part.pooled_BF for part in parts])
    spatial = [part.spatial_BS for part in parts if part.spatial_BS is not None]
    probabilities = [part.probabilities_BK for part in parts if part.probabilities_BK is not None]
    return Features(
        pooled_NF, torch.cat(spatial) if spatial else None, torch.cat(probabilities) if probabilities else None
    )


def _key(images: ImageSet, extractor: Extractor) -> str:
    """Of the images and everything that decides their features."""
    described = json.dumps({"images": images.sha256, "version": VERSION, **extractor.describe()}, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:32]
