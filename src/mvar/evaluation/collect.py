"""Features of all images of a set: in bounded memory, spread over processes, kept in a cache.

Shapes: N images, F pooled features, S spatial features, K classes of the network.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mvar.data.progress import track
from mvar.evaluation.sets import ImageSet
from mvar.features.extractors import Extracted, Extractor
from mvar.files import atomic_write, writable_folder
from mvar.tensor_files import read_tensors, write_tensors


class Processes(Protocol):
    """This process among the others that share the work."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, value: Any) -> list[Any]:
        """An object of each process, in their order, in every process."""


class Alone(NamedTuple):
    """The only process."""

    rank: int = 0
    size: int = 1

    def gather(self, value: Any) -> list[Any]:
        """The object itself."""
        return [value]


class Features(NamedTuple):
    """What a network sees in a set of images; the last two where it has them."""

    pooled_NF: Tensor
    spatial_NS: Tensor | None = None
    probabilities_NK: Tensor | None = None

    def select(self, rows: Tensor) -> "Features":
        """The images at these positions."""
        spatial_NS, probabilities_NK = (
            None if t is None else t[rows] for t in (self.spatial_NS, self.probabilities_NK)
        )
        return Features(self.pooled_NF[rows], spatial_NS, probabilities_NK)


def collect(
    images: ImageSet,
    extractor: Extractor,
    batch_size: int,
    processes: Processes = Alone(),  # noqa: B008  # a constant
    cache: Path | None = None,
    label: str = "features",
) -> Features:
    """The features of all images, in their order and in every process.

    The processes take batches in turn. A batch holds the same images whoever takes it, so that their number changes
    nothing.

    Args:
        images: the set.
        extractor: the network.
        batch_size: images at once.
        processes: that share the work.
        cache: folder in which features are looked for first, and kept.
        label: of the progress bar.
    """
    file = None if cache is None else cache / f"{_key(images, extractor)}.safetensors"
    if file is not None and file.is_file():
        return Features(**read_tensors(file))
    starts = range(0, images.count, batch_size)
    mine = starts[processes.rank :: processes.size]
    parts: dict[int, Extracted] = {}
    for start in track(mine, len(mine), label):
        parts[start] = extractor(images.batch(range(start, min(start + batch_size, images.count))))
    for others in processes.gather(parts):
        parts |= others
    features = _joined([parts[start] for start in starts])
    if file is not None and processes.rank == 0:
        tensors = {name: tensor for name, tensor in features._asdict().items() if tensor is not None}
        writable_folder(file.parent, "cache")
        atomic_write(file, lambda partial: write_tensors(tensors, partial))
    return features


def _joined(parts: Sequence[Extracted]) -> Features:
    pooled_NF = torch.cat([part.pooled_BF for part in parts])
    spatial = [part.spatial_BS for part in parts if part.spatial_BS is not None]
    probabilities = [part.probabilities_BK for part in parts if part.probabilities_BK is not None]
    return Features(
        pooled_NF, torch.cat(spatial) if spatial else None, torch.cat(probabilities) if probabilities else None
    )


def _key(images: ImageSet, extractor: Extractor) -> str:
    """Of the images and everything that decides their features."""
    described = json.dumps({"images": images.sha256, **extractor.describe()}, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:32]
