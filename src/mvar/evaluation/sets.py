"""What is compared: images of a folder or an .npz, or their statistics, opened and checked before any long work.

Shapes: N images, B images of a batch, H W pixels, F features.
Layout of the .npz: Dhariwal & Nichol 2021 (ADM): arr_0 uint8 (N, H, W, 3), arr_1 labels, and for references mu, sigma
(pooled features) with mu_s, sigma_s (spatial features).
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from mvar.data.images import decoding
from mvar.data.images.decoding import decode, read_bytes
from mvar.data.images.folders import ImageFolder
from mvar.data.workers import in_threads
from mvar.evaluation.archive import Archive
from mvar.evaluation.frechet import Gaussian, from_arrays
from mvar.progress import track
from mvar.sampling.report import Samples, read_samples

Result = TypeVar("Result")
ARTEFACTS = "whose artefacts move FID (Parmar et al. 2022, On aliased resizing)"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and covariance of the features of a set."""

    name: str  # the last part of the path
    sha256: str
    pooled: Gaussian  # of the features that FID compares
    spatial: Gaussian | None = None  # of those that sFID compares


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of one size in a fixed order, read on demand.

    Attributes:
        name: the last part of the path.
        count: N.
        shape: (H, W).
        classes: names; numbers where an .npz has labels only; empty for fewer than two.
        labels_N: int64 (N,) indices into `classes`; None for no classes.
        read: uint8 (B, H, W, 3) of some images.
        ordered: whether a class's index in `classes` is that of the model, and not among the drawn ones.
        sha256: changes with the name or content of any image. Of an .npz it covers each array's name, size and CRC-32.
        lossy: whether some of its files are lossily compressed.
        notes: what a report should say about the set.
        drawn_with: what `mvar sample` or `mvar edit` recorded beside them; None where there is nothing.
        statistics: those that the file holds too, as ADM's reference batches do.
    """

    name: str
    count: int
    shape: tuple[int, int]
    classes: list[str]
    labels_N: Tensor | None
    sha256: str
    read: Callable[[Sequence[int]], np.ndarray]
    ordered: bool = True
    lossy: bool = False
    notes: list[str] = field(default_factory=list)
    drawn_with: dict[str, Any] | None = None
    statistics: Statistics | None = None

    @property
    def size(self) -> str:
        """WxH, as users write it."""
        return f"{self.shape[1]}x{self.shape[0]}"

    def batch(self, rows: Sequence[int]) -> Tensor:
        """Pixels uint8 (B, 3, H, W), channels last in memory; raises ValueError with the name of a damaged image."""
        return torch.from_numpy(self.read(rows)).permute(0, 3, 1, 2)


def open_set(path: str, field: str, *, allow_jpeg: bool) -> ImageSet | Statistics:
    """Open a folder of images (PNG, WebP, JPEG; flat, or a folder for each class) or an .npz.

    Files are read without decoding their pixels, of an .npz the headers only.

    `field` is the option that named it, and `allow_jpeg` takes JPEGs and lossy WebPs, which `notes` then mentions.

    Raises:
        ValueError: one line: nothing there, images of several sizes, damaged, truncated or lossy files, arrays of
            another layout.
    """
    if Path(path).suffix.lower() == ".npz":
        return _open_npz(Path(path), field)
    if Path(path).is_file():
        raise ValueError(f"{field} = {path!r}: is a file, but no .npz; give a folder of images or an .npz")
    return _open_folder(ImageFolder.scan(path, field), field, allow_jpeg)


# --- folders ---


class _Look(NamedTuple):
    """What a file tells without being decoded."""

    lossy: str | None  # "JPEG", "lossy WebP"
    size: tuple[int, int]  # width and height, upright
    mark: bytes  # hash of its content


def _open_folder(folder: ImageFolder, field: str, allow_jpeg: bool) -> ImageSet:
    named = f"{field} = {str(folder.root)!r}"
    names = [path.relative_to(folder.root).as_posix() for path in folder.paths]
    samples = read_samples(folder.root)
    classes, labels, ordered = folder.classes, folder.labels, True
    if samples is not None:
        classes, labels, ordered = _drawn(samples, samples.numbers(names, named))

    def each(work: Callable[[Path], Result], rows: Sequence[int]) -> Iterator[Result]:
        """What the work gives for some files, in threads; raises ValueError with the name of an unusable one."""

        def named_work(row: int) -> Result:
            try:
                return work(folder.paths[row])
            except ValueError as error:
                raise ValueError(f"{named}: {names[row]!r}: {error}; replace it or remove it") from error

        return in_threads(named_work, rows)

    looks = list(track(each(_look, range(len(names))), len(names), "looking at images"))
    width, height = looks[0].size
    if others := [(name, look.size) for name, look in zip(names, looks, strict=True) if look.size != (width, height)]:
        name, (other_width, other_height) = others[0]
        raise ValueError(
            f"{named}: {name!r} has {other_width}x{other_height} pixels, {names[0]!r} {width}x{height} "
            f"({len(others)} of {len(names)} differ); give images of one size"
        )
    lossy = {name: look.lossy for name, look in zip(names, looks, strict=True) if look.lossy}
    if lossy and not allow_jpeg:
        name, kind = next(iter(lossy.items()))
        raise ValueError(
            f"{named}: {name!r} ({len(lossy)} of {len(names)}) is a {kind}, {ARTEFACTS}; "
            "give PNGs, or --allow-jpeg to take them as they are"
        )
    kinds = " or ".join(sorted({*lossy.values()}))
    marks = (os.fsencode(name) + b"\0" + look.mark for name, look in zip(names, looks, strict=True))
    return ImageSet(
        name=folder.root.resolve().name,
        count=len(names),
        shape=(height, width),
        classes=classes,
        labels_N=torch.tensor(labels) if classes else None,
        sha256=hashlib.sha256(b"".join(marks)).hexdigest(),
        read=lambda rows: np.stack(list(each(lambda path: np.asarray(decode(path)), rows))),
        ordered=ordered,
        lossy=bool(lossy),
        drawn_with=None if samples is None else samples.facts,
        notes=[f"{len(lossy)} of {len(names)} images are {kinds}, {ARTEFACTS}"] if lossy else [],
    )


def _look(path: Path) -> _Look:
    content = read_bytes(path)
    seen = decoding.look(content)
    if not seen.complete:
        decode(io.BytesIO(content))  # what follows an image does no harm
    return _Look(seen.lossy, seen.size, hashlib.sha256(content).digest())


def _drawn(samples: Samples, numbers: Sequence[int]) -> tuple[list[str], list[int], bool]:
    """Names of the drawn classes, each image's index among them, and whether that is the model's class index."""
    ids = sorted(samples.classes)
    index = {label: i for i, label in enumerate(ids)}
    classes = [samples.classes[label] for label in ids] if len(ids) > 1 else []
    return classes, [index[samples.labels[i]] for i in numbers], ids == list(range(len(ids)))


# --- .npz ---


def _open_npz(path: Path, field: str) -> ImageSet | Statistics:
    archive = Archive(path, field)
    statistics = None
    if (pooled := _gaussian(archive, "mu", "sigma")) is not None:
        spatial = _gaussian(archive, "mu_s", "sigma_s")
        statistics = Statistics(name=path.name, sha256=archive.fingerprint(), pooled=pooled, spatial=spatial)
    if "arr_0" not in archive.headers:
        if statistics is None:
            held = ", ".join(archive.headers) or "nothing"
            raise ValueError(f"{archive.named}: holds {held}; give one with images as arr_0, or with mu and sigma")
        return statistics
    shape, fortran, dtype, _ = archive.headers["arr_0"]
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape or fortran:
        order = " in Fortran order" if fortran else ""
        raise ValueError(f"{archive.named}: arr_0 is {dtype} {shape}{order}; give images as uint8 (N, H, W, 3)")
    samples = read_samples(path)
    labels_N, ordered = _integers(archive, "arr_1", shape[0]), True
    classes = [] if labels_N is None else [str(i) for i in range(int(labels_N.max()) + 1)]
    if samples is not None:
        classes, labels, ordered = _drawn(samples, _numbers(archive, samples, labels_N))
        labels_N = torch.tensor(labels)
    return ImageSet(
        name=path.name,
        count=shape[0],
        shape=(shape[1], shape[2]),
        classes=classes if len(classes) > 1 else [],
        labels_N=labels_N if len(classes) > 1 else None,
        sha256=archive.fingerprint(),
        read=lambda rows: archive.rows("arr_0", rows),
        ordered=ordered,
        drawn_with=None if samples is None else samples.facts,
        statistics=statistics,
    )


def _numbers(archive: Archive, samples: Samples, labels_N: Tensor | None) -> list[int]:
    """Each image's number in the report beside the archive; raises ValueError where the report is of other images."""
    count = archive.headers["arr_0"].shape[0]
    index_N = _integers(archive, "index", count)
    if index_N is not None and labels_N is not None and count == len(samples.labels):
        numbers = index_N.tolist()
        if sorted(numbers) == list(range(count)) and [samples.labels[i] for i in numbers] == labels_N.tolist():
            return numbers
    other = f"holds other images than its {samples.origin} lists"
    raise ValueError(f"{archive.named}: {other}; draw them again, or remove {samples.origin}")


def _integers(archive: Archive, name: str, count: int) -> Tensor | None:
    """A class or number for each image, (N,); None where there is no such array."""
    if name not in archive.headers:
        return None
    integers_N = archive.array(name)
    if integers_N.dtype.kind not in "iu" or integers_N.shape != (count,) or integers_N.min() < 0:
        found = f"{integers_N.dtype} {integers_N.shape}"
        raise ValueError(f"{archive.named}: {name} is {found}; give integers from 0 of shape ({count},), or none")
    return torch.from_numpy(integers_N.astype(np.int64))


def _gaussian(archive: Archive, mean: str, covariance: str) -> Gaussian | None:
    present = [name for name in (mean, covariance) if name in archive.headers]
    if len(present) == 1:
        raise ValueError(f"{archive.named}: holds {present[0]} alone; give one with both {mean} and {covariance}")
    return from_arrays(archive.array(mean), archive.array(covariance), archive.named) if present else None
