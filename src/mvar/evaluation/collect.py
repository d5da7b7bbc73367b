"""Features of all images of a set: batch by batch, spread over processes, kept in a cache.

Shapes: N images, F pooled features, S spatial features, K classes of the network.
"""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from mvar.evaluation.sets import ImageSet
from mvar.features.base import Extracted
from mvar.features.extractors import VERSION, Extractor
from mvar.files import atomic_write
from mvar.machine import check_memory
from mvar.progress import track
from mvar.tensor_files import read_tensors, write_tensors

IMAGE_BYTES = 36  # per pixel in a network, at least: itself and the first maps in float32

Result = TypeVar("Result")


class Processes(Protocol):
    """This process among those that share the work, as `mvar.training.parallel.Ranks`; by default the only one."""

    @property
    def rank(self) -> int:
        return 0

    @property
    def size(self) -> int:
        return 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def gather_on_main(self, value: Any) -> list[Any] | None:
        return [value]

    def on_main(self, work: Callable[[], Result]) -> Result:
        return work()


class Alone(Processes):
    """The only process."""


class Features(NamedTuple):
    """What a network sees in a set of images, on the CPU; the last two where it has them."""

    pooled_NF: Tensor
    spatial_NS: Tensor | None = None
    probabilities_NK: Tensor | None = None

    def select(self, rows: Tensor) -> "Features":
        return Features(*(None if tensor is None else tensor[rows] for tensor in self))  # type: ignore[arg-type]


class Collected(NamedTuple):
    features: Features | None  # in the images' order; in the process of rank 0 only
    seconds: float | None  # None where the cache had them


def collect(
    images: ImageSet,
    extractor: Extractor,
    batch_size: int,
    processes: Processes = Alone(),  # noqa: B008  # a constant
    cache: Path | None = None,
    label: str = "features",
) -> Collected:
    """The features of all images.

    The processes take batches in turn. Batches hold the same images for any number of processes, so the features do
    not depend on it. Features are looked for in the cache's folder first, and kept there.

    Raises:
        ValueError: an image that is damaged; in every process.
    """
    file = None if cache is None else cache / f"{_key(images, extractor)}.safetensors"
    kept = None
    if file is not None and processes.rank == 0:
        with suppress(ValueError):  # missing, or damaged
            kept = Features(**read_tensors(file))
    if processes.on_main(lambda: kept is not None):  # one process decides for all
        return Collected(kept, None)
    begun = time.perf_counter()
    starts = range(0, images.count, batch_size)
    mine = starts[processes.rank :: processes.size]
    parts: dict[int, Extracted] = {}
    problem = None
    try:
        batch, (height, width) = min(batch_size, images.count), images.shape
        check_memory(IMAGE_BYTES * batch * height * width, f"batch_size = {batch:,}: as many at once", "give fewer")
        for start in track(mine, len(mine), label):
            seen = extractor(images.batch(range(start, min(start + batch_size, images.count))))
            parts[start] = Extracted(*(None if t is None else t.cpu() for t in seen))  # type: ignore[arg-type]
    except ValueError as error:  # the other processes wait for this one
        problem = error
    for other in processes.gather(problem):
        if other is not None:
            raise other
    gathered = processes.gather_on_main(parts)
    seconds = time.perf_counter() - begun
    if gathered is None:
        return Collected(None, seconds)
    parts = {start: part for found in gathered for start, part in found.items()}
    columns = zip(*(parts.pop(start) for start in starts), strict=True)
    whole = (None if column[0] is None else torch.cat(column) for column in columns)
    features = Features(*whole)  # type: ignore[arg-type]
    if file is not None:
        tensors = {name: tensor for name, tensor in features._asdict().items() if tensor is not None}
        atomic_write(file, lambda partial: write_tensors(tensors, partial))
    return Collected(features, seconds)


def _key(images: ImageSet, extractor: Extractor) -> str:
    """A hash of the images and everything that decides their features."""
    described = json.dumps({"images": images.sha256, "version": VERSION, **extractor.describe()}, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:32]
