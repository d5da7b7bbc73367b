"""What is compared: images of a folder or an .npz, or their statistics, opened and checked before any long work.

Shapes: N images, B images of a batch, H W pixels, F features.
Layout of the .npz: Dhariwal & Nichol 2021 (ADM): arr_0 uint8 (N, H, W, 3), arr_1 labels, and for references mu, sigma
(pooled features) with mu_s, sigma_s (spatial features).
"""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar.data.images.decoding import Look, decode, look, read_bytes
from mvar.data.images.folders import ImageFolder
from mvar.data.workers import in_threads
from mvar.evaluation.archive import Archive
from mvar.evaluation.frechet import Gaussian, from_arrays
from mvar.progress import track
from mvar.sampling.report import Samples, read_samples

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
        """Pixels uint8 (B, 3, H, W), channels last in memory. Going forward is quick, going back in an .npz is not.

        Raises:
            ValueError: an image that is damaged, by its name.
        """
        return torch.from_numpy(self.read(rows)).permute(0, 3, 1, 2)


def open_set(path: str, field: str, *, allow_jpeg: bool) -> ImageSet | Statistics:
    """Open a folder of images (PNG, WebP, JPEG; flat, or a folder for each class) or an .npz.

    Files are read without decoding their pixels, of an .npz the headers only.

    Args:
        field: the option that named it, for messages.
        allow_jpeg: whether images may be JPEGs or lossy WebPs, which `notes` then mentions.

    Raises:
        ValueError: one line with the field, its value and the fix: nothing there, images of several sizes, damaged or
            truncated files, lossy ones, arrays of another layout.
    """
    if Path(path).suffix.lower() == ".npz":
        return _open_npz(Path(path), field)
    if Path(path).is_file():
        raise ValueError(f"{field} = {path!r}: is a file, but no .npz; give a folder of images or an .npz")
    return _open_folder(ImageFolder.scan(path, field), field, allow_jpeg)


# --- folders ---


def _open_folder(folder: ImageFolder, field: str, allow_jpeg: bool) -> ImageSet:
    named = f"{field} = {str(folder.root)!r}"
    names = [path.relative_to(folder.root).as_posix() for path in folder.paths]
    samples = read_samples(folder.root)
    classes, labels, ordered = folder.classes, folder.labels, True
    if samples is not None:
        classes, labels, ordered = _drawn(samples, samples.numbers(names, named))
    looks, digest = list[Look](), hashlib.sha256()
    found = track(in_threads(_look, folder.paths), len(names), "looking at images")
    for name, seen in zip(names, found, strict=True):
        if isinstance(seen, str):
            raise _unusable(named, name, seen)
        looks.append(seen[0])
        digest.update(os.fsencode(name) + b"\0" + seen[1])
    width, height = looks[0].size
    if others := [(name, it.size) for name, it in zip(names, looks, strict=True) if it.size != (width, height)]:
        name, (other_width, other_height) = others[0]
        raise ValueError(
            f"{named}: {name!r} has {other_width}x{other_height} pixels, {names[0]!r} {width}x{height} "
            f"({len(others)} of {len(names)} differ); give images of one size"
        )
    lossy = {name: it.lossy for name, it in zip(names, looks, strict=True) if it.lossy}
    if lossy and not allow_jpeg:
        name, kind = next(iter(lossy.items()))
        raise ValueError(
            f"{named}: {name!r} ({len(lossy)} of {len(names)}) is a {kind}, {ARTEFACTS}; "
            "give PNGs, or --allow-jpeg to take them as they are"
        )
    kinds = " or ".join(sorted({*lossy.values()}))

    def read(rows: Sequence[int]) -> np.ndarray:
        pixels_BHW3 = np.empty((len(rows), height, width, 3), np.uint8)
        images = in_threads(_decoded, [folder.paths[i] for i in rows])
        for out_HW3, i, image_HW3 in zip(pixels_BHW3, rows, images, strict=True):
            if isinstance(image_HW3, str):
                raise _unusable(named, names[i], image_HW3)
            if image_HW3.shape != out_HW3.shape:
                raise _unusable(named, names[i], "has another size than before")
            out_HW3[:] = image_HW3
        return pixels_BHW3

    return ImageSet(
        name=folder.root.resolve().name,
        count=len(names),
        shape=(height, width),
        classes=classes,
        labels_N=torch.tensor(labels) if classes else None,
        sha256=digest.hexdigest(),
        read=read,
        ordered=ordered,
        lossy=bool(lossy),
        drawn_with=None if samples is None else samples.facts,
        notes=[f"{len(lossy)} of {len(names)} images are {kinds}, {ARTEFACTS}"] if lossy else [],
    )


def _look(path: Path) -> tuple[Look, bytes] | str:
    """What a file's header says, and a hash of the file; the reason where it cannot be used."""
    try:
        content = read_bytes(path)
        seen = look(content)
        if not seen.complete:
            decode(io.BytesIO(content))  # what follows an image does no harm
        return seen, hashlib.sha256(content).digest()
    except ValueError as error:
        return str(error)


def _decoded(path: Path) -> np.ndarray | str:
    """The pixels of a file (H, W, 3), or the reason why there are none."""
    try:
        return np.asarray(decode(path))
    except ValueError as error:
        return str(error)


def _unusable(named: str, name: str, reason: str) -> ValueError:
    return ValueError(f"{named}: {name!r}: {reason}; replace it or remove it")


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
    dtype, shape, in_rows, _ = archive.headers["arr_0"]
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise ValueError(f"{archive.named}: arr_0 is {dtype} {shape}; give images as uint8 (N, H, W, 3)")
    if not in_rows:
        raise ValueError(f"{archive.named}: arr_0 is in Fortran order; save np.ascontiguousarray of it")
    samples = read_samples(path)
    if samples is None:
        labels_N, ordered = _labels(archive, shape[0]), True
        classes = [] if labels_N is None else [str(i) for i in range(int(labels_N.max()) + 1)]
    else:
        classes, labels, ordered = _drawn(samples, _numbers(archive, samples, shape[0]))
        labels_N = torch.tensor(labels) if classes else None
    return ImageSet(
        name=path.name,
        count=shape[0],
        shape=(shape[1], shape[2]),
        classes=classes,
        labels_N=labels_N,
        sha256=archive.fingerprint(),
        read=lambda rows: archive.rows("arr_0", rows),
        ordered=ordered,
        drawn_with=None if samples is None else samples.facts,
        statistics=statistics,
    )


def _labels(archive: Archive, count: int) -> Tensor | None:
    """The labels in arr_1; None where there is none, or only one class."""
    labels_N = _integers(archive, "arr_1", count)
    if labels_N is None:
        return None
    if int(labels_N.min()) < 0:
        raise ValueError(f"{archive.named}: arr_1 has the label {int(labels_N.min())}; give labels from 0")
    if (most := int(labels_N.max())) >= count:  # before anything is made for each class
        raise ValueError(f"{archive.named}: {count} images of {most + 1} classes, by arr_1; give more images")
    return labels_N if most > 0 else None


def _numbers(archive: Archive, samples: Samples, count: int) -> list[int]:
    """Each image's number in the report beside the archive; raises ValueError where the report is of other images."""
    index_N, labels_N = _integers(archive, "index", count), _integers(archive, "arr_1", count)
    if index_N is not None and labels_N is not None and count == len(samples.labels):
        numbers = index_N.tolist()
        if sorted(numbers) == list(range(count)) and [samples.labels[i] for i in numbers] == labels_N.tolist():
            return numbers
    other = f"holds other images than its {samples.origin} lists"
    raise ValueError(f"{archive.named}: {other}; draw them again, or remove {samples.origin}")


def _integers(archive: Archive, name: str, count: int) -> Tensor | None:
    """An integer for each image, (N,); None where there is no such array."""
    if name not in archive.headers:
        return None
    dtype, shape, *_ = archive.headers[name]
    if dtype.kind not in "iu" or shape != (count,):
        raise ValueError(f"{archive.named}: {name} is {dtype} {shape}; give labels as integers ({count},), or none")
    return torch.from_numpy(archive.array(name).astype(np.int64))


def _gaussian(archive: Archive, mean: str, covariance: str) -> Gaussian | None:
    present = [name for name in (mean, covariance) if name in archive.headers]
    if len(present) == 1:
        raise ValueError(f"{archive.named}: holds {present[0]} alone; give one with both {mean} and {covariance}")
    if not present:
        return None
    return from_arrays(archive.array(mean), archive.array(covariance), archive.named, (mean, covariance))
