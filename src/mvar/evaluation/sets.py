"""What is compared: images of a folder or an .npz, or statistics of such, opened and checked before any long work.

Shapes: N images, B images of a batch, H W pixels, F features.
Layout of the .npz: Dhariwal & Nichol 2021 (ADM): arr_0 uint8 (N, H, W, 3), arr_1 labels, and for references mu, sigma
(pool features) with mu_s, sigma_s (spatial features).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mvar.data.images.folders import ImageFolder
from mvar.evaluation.archive import Archive
from mvar.evaluation.frechet import Gaussian, from_arrays
from mvar.evaluation.image_files import ImageFiles
from mvar.sampling.labels import places
from mvar.sampling.report import Samples, read_samples

ARTEFACTS = "whose artefacts move FID (Parmar et al. 2022, On aliased resizing)"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Mean and covariance of the features of a set.

    Attributes:
        name: the last part of the path.
        sha256: a fingerprint of the file.
        pool: of the features that FID compares.
        spatial: of those that sFID compares; None where there are none.
    """

    name: str
    sha256: str
    pool: Gaussian
    spatial: Gaussian | None = None

    @property
    def dimensions(self) -> int:
        """Features of `pool`."""
        return len(self.pool.mean_F)

    @property
    def spatial_dimensions(self) -> int | None:
        """Features of `spatial`."""
        return None if self.spatial is None else len(self.spatial.mean_F)


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of one size in a fixed order, read when they are asked for.

    Attributes:
        name: the last part of the path.
        count: N.
        shape: (H, W).
        classes: names; numbers where an .npz has labels only; empty for fewer than two.
        labels_N: int64 (N,) places in `classes`; None for no classes.
        ordered: whether a class's place in `classes` is its number, and not that among the few which were drawn.
        sha256: changes with the name or content of any image. Of an .npz it covers each array's name, size and CRC-32.
        lossy: whether some of its files are lossily compressed.
        notes: what a report should say about the set.
        drawn_with: what `mvar sample` or `mvar edit` left beside them; None where there is nothing.
        statistics: those that the file holds besides, as ADM's reference batches do.
    """

    name: str
    count: int
    shape: tuple[int, int]
    classes: list[str]
    labels_N: Tensor | None
    sha256: str
    read: Callable[[Sequence[int]], np.ndarray]  # uint8 (B, H, W, 3)
    ordered: bool = True
    lossy: bool = False
    notes: list[str] = field(default_factory=list)
    drawn_with: dict[str, Any] | None = None
    statistics: Statistics | None = None

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
        allow_jpeg: whether images may be JPEGs or lossy WebPs: then `notes` says so.

    Raises:
        ValueError: one line with the field, its value and the fix: nothing there, images of several sizes, damaged or
            truncated files, lossy ones, arrays of another layout.
    """
    if Path(path).suffix.lower() == ".npz":
        return _open_npz(Path(path), field)
    if Path(path).is_file():
        raise ValueError(f"{field} = {path!r}: is a file, but no .npz; give a folder of images or an .npz")
    return _open_folder(ImageFolder.scan(path, field), field, allow_jpeg)


def check_pair(samples: ImageSet, reference: ImageSet | Statistics, field: str = "reference") -> None:
    """Check that two sets can be compared. Statistics alone know neither size nor classes.

    Args:
        field: the option that named the second, for messages.

    Raises:
        ValueError: a line for the first of: another resolution, another number of classes, other names of classes,
            numbers that cannot be told to belong to names, fewer images than classes.
    """
    sets = {"samples": samples} | ({field: reference} if isinstance(reference, ImageSet) else {})
    for name, images in sets.items():
        if images.count < len(images.classes):
            raise ValueError(
                f"{name} = {images.name!r}: {images.count} images of {len(images.classes)} classes; give more images"
            )
    if not isinstance(reference, ImageSet):
        return
    named = f"{field} = {reference.name!r}"
    if samples.shape != reference.shape:
        sizes = " and ".join("{1}x{0}".format(*images.shape) for images in sets.values())
        raise ValueError(f"{named}: samples and {field} have {sizes} pixels; give a {field} of the samples' size")
    if not (samples.classes and reference.classes):
        return
    ours, theirs = samples.classes, reference.classes
    if len(ours) != len(theirs):
        raise ValueError(
            f"{named}: samples and {field} have {len(ours)} and {len(theirs)} classes; give a {field} of the same "
            "classes, or one without any"
        )
    numbered = [_numbered(images.classes) for images in sets.values()]
    if any(numbered):
        if numbered[0] != numbered[1] and not (samples.ordered and reference.ordered):
            raise ValueError(
                f"{named}: one set has classes by number, the other only some of its model's; give samples of all "
                f"classes, or a {field} with the classes' names"
            )
    elif sorted(order := places(ours, theirs)) != list(range(len(theirs))):
        a = next(name for name, place in zip(ours, order, strict=True) if order.count(place) > 1 or place < 0)
        b = next(name for place, name in enumerate(theirs) if place not in order)
        raise ValueError(
            f"{named}: the classes of samples and {field} differ, first {a!r} and {b!r}; give a {field} of the "
            "same classes, or one without any"
        )


def aligned(images: ImageSet, samples: ImageSet) -> ImageSet:
    """The second of a pair with its classes in the samples' order, where both know them by name."""
    if images.labels_N is None or not samples.classes:
        return images
    order = places(images.classes, samples.classes)
    if sorted(order) != list(range(len(samples.classes))):
        return images
    return replace(images, classes=samples.classes, labels_N=torch.tensor(order)[images.labels_N])


def of_classes(images: ImageSet | Statistics, samples: ImageSet) -> ImageSet | Statistics:
    """Without the images of classes that the samples have none of, where both know classes by name."""
    if isinstance(images, Statistics) or images.labels_N is None or not samples.classes or _numbered(images.classes):
        return images
    place = torch.tensor(places(images.classes, samples.classes))
    if sorted(place[place >= 0].tolist()) != list(range(len(samples.classes))) or bool((place >= 0).all()):
        return images
    rows = (place >= 0)[images.labels_N].nonzero()[:, 0].tolist()
    fewer = some_of(images, rows, "for some of its classes")
    return replace(fewer, classes=samples.classes, labels_N=place[images.labels_N[rows]])


def some_of(images: ImageSet, rows: Sequence[int], why: str) -> ImageSet:
    """These images of a set, in this order; `why` says for what reason, where the set brings statistics of all."""
    return replace(
        images,
        count=len(rows),
        labels_N=None if images.labels_N is None else images.labels_N[rows],
        sha256=hashlib.sha256(f"{images.sha256} {list(rows)}".encode()).hexdigest(),
        notes=images.notes + ([f"its statistics are of all images, and not used {why}"] if images.statistics else []),
        read=lambda chosen: images.read([rows[row] for row in chosen]),
        statistics=None,
    )


# --- folders ---


def _open_folder(folder: ImageFolder, field: str, allow_jpeg: bool) -> ImageSet:
    named = f"{field} = {str(folder.root)!r}"
    samples = read_samples(folder.root)
    if samples is None:
        classes, labels, ordered = folder.classes, folder.labels, True
    else:
        names = [path.relative_to(folder.root).as_posix() for path in folder.paths]
        classes, labels, ordered = _drawn(samples, samples.numbers(names, named))
    files = ImageFiles(folder, field)
    if files.lossy and not allow_jpeg:
        name, kind = next(iter(files.lossy.items()))
        raise ValueError(
            f"{named}: {name!r} ({len(files.lossy)} of {len(files)}) is a {kind}, {ARTEFACTS}; "
            "give PNGs, or --allow-jpeg to take them as they are"
        )
    kinds = " or ".join(sorted({*files.lossy.values()}))
    return ImageSet(
        name=folder.root.resolve().name,
        count=len(files),
        shape=files.shape,
        classes=classes,
        labels_N=torch.tensor(labels) if classes else None,
        sha256=files.fingerprint(),
        read=files.rows,
        ordered=ordered,
        lossy=bool(files.lossy),
        drawn_with=None if samples is None else samples.facts,
        notes=[f"{len(files.lossy)} of {len(files)} images are {kinds}, {ARTEFACTS}"] if files.lossy else [],
    )


def _drawn(samples: Samples, numbers: Sequence[int]) -> tuple[list[str], list[int], bool]:
    """Names of the classes that were drawn, each image's place among them, and whether that is the model's number."""
    ids = sorted(samples.classes)
    places = {label: place for place, label in enumerate(ids)}
    classes = [samples.classes[label] for label in ids] if len(ids) > 1 else []
    return classes, [places[samples.labels[i]] for i in numbers], ids == list(range(len(ids)))


# --- .npz ---


def _open_npz(path: Path, field: str) -> ImageSet | Statistics:
    archive = Archive(path, field)
    statistics = _statistics(archive, path.name)
    if "arr_0" not in archive.names:
        if statistics is None:
            held = ", ".join(archive.names) or "nothing"
            raise ValueError(f"{archive.named}: holds {held}; give one with images as arr_0, or with mu and sigma")
        return statistics
    dtype, shape = archive.described("arr_0")
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise ValueError(f"{archive.named}: arr_0 is {dtype} {shape}; give images as uint8 (N, H, W, 3)")
    if not archive.in_rows("arr_0"):
        raise ValueError(f"{archive.named}: arr_0 is in Fortran's order; save np.ascontiguousarray of it")
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
    """The labels in arr_1; None where there is none, or but one class."""
    labels_N = _integers(archive, "arr_1", count)
    if labels_N is None:
        return None
    if int(labels_N.min()) < 0:
        raise ValueError(f"{archive.named}: arr_1 has the label {int(labels_N.min())}; give labels from 0")
    if (most := int(labels_N.max())) >= count:  # before anything is made for each class
        raise ValueError(f"{archive.named}: {count} images of {most + 1} classes, by arr_1; give more images")
    return labels_N if int(labels_N.max()) > 0 else None


def _numbers(archive: Archive, samples: Samples, count: int) -> list[int]:
    """The number of each image, as the report beside the archive has them.

    Raises:
        ValueError: one line: the images are not those of the report.
    """
    index_N, labels_N = _integers(archive, "index", count), _integers(archive, "arr_1", count)
    if index_N is not None and labels_N is not None and count == len(samples.labels):
        numbers = index_N.tolist()
        if sorted(numbers) == list(range(count)) and [samples.labels[i] for i in numbers] == labels_N.tolist():
            return numbers
    raise ValueError(
        f"{archive.named}: holds other images than its {samples.origin} lists; draw them again, or remove "
        f"{samples.origin}"
    )


def _integers(archive: Archive, name: str, count: int) -> Tensor | None:
    """An integer of each image, (N,); None where there is no such array."""
    if name not in archive.names:
        return None
    dtype, shape = archive.described(name)
    if dtype.kind not in "iu" or shape != (count,):
        raise ValueError(f"{archive.named}: {name} is {dtype} {shape}; give labels as integers ({count},), or none")
    return torch.from_numpy(archive.array(name).astype(np.int64))


def _statistics(archive: Archive, name: str) -> Statistics | None:
    pool, spatial = _gaussian(archive, "mu", "sigma"), _gaussian(archive, "mu_s", "sigma_s")
    if pool is None:
        return None
    return Statistics(name=name, sha256=archive.fingerprint(), pool=pool, spatial=spatial)


def _gaussian(archive: Archive, mean: str, covariance: str) -> Gaussian | None:
    present = [name for name in (mean, covariance) if name in archive.names]
    if not present:
        return None
    if len(present) == 1:
        raise ValueError(f"{archive.named}: holds {present[0]} alone; give one with both {mean} and {covariance}")
    (kind, shape), (other_kind, other) = (archive.described(name) for name in present)
    if kind.kind != "f" or other_kind.kind != "f" or len(shape) != 1 or not shape[0] or other != (*shape, *shape):
        raise ValueError(
            f"{archive.named}: {mean} is {kind} {shape}, {covariance} is {other_kind} {other}; "
            "give floats (F,) and (F, F)"
        )
    return from_arrays(archive.array(mean), archive.array(covariance), archive.named, (mean, covariance))


def _numbered(classes: Sequence[str]) -> bool:
    return list(classes) == [str(i) for i in range(len(classes))]
