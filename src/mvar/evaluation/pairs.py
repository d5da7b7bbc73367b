"""Two sets that are compared: whether they can be, and the classes of one in the order of the other's."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch

from mvar.evaluation.sets import ImageSet, Statistics
from mvar.sampling.labels import places


def check_pair(samples: ImageSet, reference: ImageSet | Statistics, field: str = "reference") -> None:
    """Check that two sets can be compared; `field` is the option that named the second. Statistics fit any samples.

    Raises:
        ValueError: one line for the first of: another resolution, another number of classes, other names of classes,
            numbers that cannot be matched with names, fewer images than classes.
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
        sizes = " and ".join(images.size for images in sets.values())
        raise ValueError(f"{named}: samples and {field} have {sizes} pixels; give a {field} of the samples' size")
    ours, theirs = samples.classes, reference.classes
    if not ours or not theirs:
        return
    fix = f"give a {field} of the same classes, or one without any"
    if len(ours) != len(theirs):
        raise ValueError(f"{named}: samples and {field} have {len(ours)} and {len(theirs)} classes; {fix}")
    numbered = [_numbered(images.classes) for images in sets.values()]
    if any(numbered):
        if numbered[0] != numbered[1] and not (samples.ordered and reference.ordered):
            raise ValueError(
                f"{named}: one set has classes by number, the other only some of its model's; give samples of all "
                f"classes, or a {field} with the classes' names"
            )
    elif sorted(order := places(ours, theirs)) != list(range(len(theirs))):
        a = next(name for name, index in zip(ours, order, strict=True) if order.count(index) > 1 or index < 0)
        b = next(name for index, name in enumerate(theirs) if index not in order)
        raise ValueError(f"{named}: the classes of samples and {field} differ, first {a!r} and {b!r}; {fix}")


def aligned(images: ImageSet, samples: ImageSet) -> ImageSet:
    """The second of a pair with its classes in the samples' order, where both know them by name."""
    if images.labels_N is None or not samples.classes:
        return images
    order = places(images.classes, samples.classes)
    if sorted(order) != list(range(len(samples.classes))):
        return images
    return replace(images, classes=samples.classes, labels_N=torch.tensor(order)[images.labels_N])


def of_classes(images: ImageSet | Statistics, samples: ImageSet) -> ImageSet | Statistics:
    """Only images of classes that the samples have, where both know classes by name."""
    if isinstance(images, Statistics) or images.labels_N is None or not samples.classes or _numbered(images.classes):
        return images
    index = torch.tensor(places(images.classes, samples.classes))
    if sorted(index[index >= 0].tolist()) != list(range(len(samples.classes))) or bool((index >= 0).all()):
        return images
    rows = (index >= 0)[images.labels_N].nonzero()[:, 0].tolist()
    return replace(some_of(images, rows), classes=samples.classes, labels_N=index[images.labels_N[rows]])


def some_of(images: ImageSet, rows: Sequence[int]) -> ImageSet:
    """These images of a set, in this order, without the statistics of all that it may bring."""
    unused = ["its statistics are of all its images, and not used"] if images.statistics else []
    return replace(
        images,
        count=len(rows),
        labels_N=None if images.labels_N is None else images.labels_N[rows],
        sha256=hashlib.sha256(f"{images.sha256} {list(rows)}".encode()).hexdigest(),
        notes=images.notes + unused,
        read=lambda chosen: images.read([rows[row] for row in chosen]),
        statistics=None,
    )


def _numbered(classes: Sequence[str]) -> bool:
    return list(classes) == [str(i) for i in range(len(classes))]
