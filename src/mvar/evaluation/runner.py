"""One evaluation from end to end: samples against real images, by a protocol that is written into the report."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mvar import __version__
from mvar.checkpoint.placement import find_device
from mvar.data.order import evenly_spaced
from mvar.evaluation import measures
from mvar.evaluation.collect import Alone, Collected, Features, Processes, collect
from mvar.evaluation.frechet import too_few
from mvar.evaluation.images import WINDOW, psnr, ssim
from mvar.evaluation.intervals import mean
from mvar.evaluation.report import Report, Value, write
from mvar.evaluation.sets import ImageSet, Statistics, aligned, check_pair, of_classes, open_set, some_of
from mvar.features.extractors import PUBLIC_FILE, PUBLIC_SHA256, Extractor, find_extractor
from mvar.features.inception import Pipeline
from mvar.files import writable_folder
from mvar.machine import machine, peak_bytes
from mvar.model import Model
from mvar.sampling.engine import to_uint8
from mvar.settings import MANY, Count, Seed, Switch, Whole, settings

BATCH = 64
UNEVEN = 0.01  # difference of a class's shares from which it is told


@settings
class Options:
    """How samples are compared with real images.

    Attributes:
        features: effnet-lite0, or inception with `weights`.
        weights: file of Inception's weights.
        pipeline: how images come to Inception: "adm" as in the first FIDs and the ADM suite, or "pytorch-fid".
        floor: folder or .npz of other real images, of which as many as there are samples show how low a distance can
            get; the two halves of the reference are compared where there are none.
        limit: at most so many images of each set, evenly spaced.
        cache: folder that keeps features for the next time.
        batch_size: images that the network sees at once.
        allow_jpeg: take samples that are JPEGs.
        seed: of the subsets of the kernel distance and of the bootstrap.
        device: of the network; a GPU where there is one by default.
        dtype: of the network, float32 or bfloat16.
    """

    features: str = "effnet-lite0"
    weights: str | None = None
    pipeline: Pipeline = "adm"
    floor: str | None = None
    limit: Annotated[int | None, Whole(2, MANY)] = None
    cache: str | None = None
    batch_size: Count = BATCH
    allow_jpeg: Switch = False
    seed: Seed = 0
    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.features != "inception" and self.pipeline != "adm":
            raise ValueError(f"pipeline = {self.pipeline!r}: is Inception's; leave it out")


class Sides(NamedTuple):
    """What is compared with what, and with which other real images for the floor."""

    samples: ImageSet
    reference: ImageSet | Statistics
    floor: ImageSet | None


class Fidelity(NamedTuple):
    """Of each reconstruction in a batch: PSNR in dB, and SSIM where images are large enough."""

    psnr_B: Tensor
    ssim_B: Tensor | None


def evaluate(
    samples: str | Model,
    reference: str,
    *,
    out: str | None = None,
    origin: Mapping[str, Any] | None = None,
    processes: Processes = Alone(),  # noqa: B008  # a constant
    **options: Any,
) -> Report:
    """Compare samples with real images.

    Args:
        samples: folder or .npz of images; or a model, whose reconstructions of the reference are the samples.
        reference: folder or .npz of real images, or an .npz of their statistics.
        out: folder for report.json.
        origin: what the report tells of a model besides its tokenizer's hash, such as its name.
        processes: that share the work, as torchrun starts them; the values are the same for any number.
        options: see `Options`.

    Returns:
        The report, in every process.

    Raises:
        ValueError: one line for what cannot be used, before the long work unless a file turns out to be damaged.
    """
    begun = time.perf_counter()
    chosen = Options(**options)
    device = find_device(chosen.device)
    extractor = find_extractor(chosen.features, chosen.weights, device, chosen.dtype, pipeline=chosen.pipeline)
    folder = None if out is None else writable_folder(out, "out")
    cache = None if chosen.cache is None else writable_folder(chosen.cache, "cache")
    fidelity: dict[int, Fidelity] = {}
    sides = _open(samples, reference, chosen, fidelity, dict(origin or {}))
    statistics = _statistics(sides.reference, extractor, chosen.pipeline)

    def features(images: ImageSet | Statistics | None, label: str, cache: Path | None = cache) -> Collected:
        if not isinstance(images, ImageSet):
            return Collected(None, None)
        return collect(images, extractor, chosen.batch_size, processes, cache, label)

    ours, seconds = features(sides.samples, "samples", None if isinstance(samples, Model) else cache)
    real, other = features(sides.reference, "reference").features, features(sides.floor, "floor").features
    restored = {row: part for found in processes.gather(fidelity) for row, part in found.items()}
    paired = isinstance(samples, Model) and statistics is None

    def measured() -> Report:
        if ours is None:
            raise ValueError("samples: their features are missing")
        target = _target(statistics, real)
        metrics = measures.measure(ours, target, extractor.distance, chosen.seed, "pairs" if paired else "samples")
        floor, best = _floor(sides, statistics, target, real, other, extractor.distance, chosen.seed)
        for name in best.keys() & metrics.keys():
            metrics[name] = replace(metrics[name], floor=best[name].value)
        report = Report(
            protocol=_protocol(sides, extractor, statistics, chosen.seed),
            samples=_described(sides.samples),
            floor=floor,
            metrics=metrics | _fidelity(restored),
            classes=_classes(sides, ours, real, measures.NAMES[extractor.distance].kernel, chosen.seed),
            notes=_notes(sides, floor, extractor),
            speed=_speed(sides.samples.count, seconds, time.perf_counter() - begun),
            machine={"mvar": __version__, **machine()},
        )
        if folder is not None:
            write(report, folder)
        return report

    return processes.on_main(measured)


# --- what is compared ---


def _open(
    samples: str | Model, reference: str, chosen: Options, fidelity: dict[int, Fidelity], origin: dict[str, Any]
) -> Sides:
    real = _at_most(open_set(reference, "reference", allow_jpeg=True), chosen.limit)
    if isinstance(samples, Model):
        if isinstance(real, Statistics):
            raise ValueError(f"reference = {reference!r}: holds statistics alone; give images to reconstruct")
        drawn = _reconstructed(samples, real, fidelity, origin)
    else:
        opened = _at_most(open_set(samples, "samples", allow_jpeg=chosen.allow_jpeg), chosen.limit)
        if isinstance(opened, Statistics):
            raise ValueError(f"samples = {samples!r}: holds statistics alone; give the images")
        drawn = opened
    check_pair(drawn, real)
    other = None
    if chosen.floor is not None:
        found = _at_most(of_classes(open_set(chosen.floor, "floor", allow_jpeg=True), drawn), drawn.count)
        if isinstance(found, Statistics):
            raise ValueError(f"floor = {chosen.floor!r}: holds statistics alone; give real images")
        check_pair(drawn, found, "floor")
        other = aligned(found, drawn)
    for field, images in {"samples": drawn, "reference": real, "floor": other}.items():
        if isinstance(images, ImageSet) and images.count < 2:
            raise ValueError(f"{field} = {images.name!r}: holds {images.count} image; a covariance needs at least 2")
    return Sides(drawn, aligned(real, drawn) if isinstance(real, ImageSet) else real, other)


def _at_most(images: ImageSet | Statistics, most: int | None) -> ImageSet | Statistics:
    """At most so many of the images, in the same order: of each class its share, else by chance, always the same."""
    if isinstance(images, Statistics) or most is None or images.count <= most:
        return images
    return some_of(images, _order(images)[evenly_spaced(images.count, most)].sort().values.tolist(), "with a limit")


def _order(images: ImageSet) -> Tensor:
    """All places, class by class; in a random order where there are no classes, as a file's own may have a period."""
    if images.labels_N is not None:
        return images.labels_N.argsort(stable=True)
    return torch.randperm(images.count, generator=torch.Generator().manual_seed(0))


def _reconstructed(model: Model, real: ImageSet, fidelity: dict[int, Fidelity], origin: dict[str, Any]) -> ImageSet:
    """The images after the tokenizer; how far each batch is from the original is noted by its first row."""
    if real.shape != model.tokenizer.config.image_shape:
        asked, found = ("{1}x{0}".format(*shape) for shape in (model.tokenizer.config.image_shape, real.shape))
        raise ValueError(f"reference = {real.name!r}: has images of {found}, the tokenizer takes {asked}; resize them")

    def read(rows: Sequence[int]) -> np.ndarray:
        pixels_B3HW = real.batch(rows)
        restored_BHW3 = to_uint8(model.tokenizer.reconstruct(pixels_B3HW.to(model.device) / 255))
        restored_B3HW = torch.from_numpy(restored_BHW3).permute(0, 3, 1, 2)
        similar = ssim(restored_B3HW, pixels_B3HW) if min(real.shape) >= WINDOW else None
        fidelity[rows[0]] = Fidelity(psnr(restored_B3HW, pixels_B3HW), similar)
        return restored_BHW3

    fingerprint = model.tokenizer.fingerprint()
    dtype = str(next(model.tokenizer.decoder.parameters()).dtype).removeprefix("torch.")
    return replace(
        real,
        name=f"{real.name}, reconstructed",
        sha256=hashlib.sha256(f"{real.sha256} {fingerprint}".encode()).hexdigest(),  # the dtype is the weights'
        read=read,
        drawn_with=origin | {"tokenizer": fingerprint, "dtype": dtype},
        notes=[],
        statistics=None,
    )


def _statistics(reference: ImageSet | Statistics, extractor: Extractor, pipeline: Pipeline) -> Statistics | None:
    """Those of the reference, where they are of this network and of images that came to it in the same way.

    An .npz with images and statistics, as ADM's references are, has Inception's, of more images than it holds.
    Statistics alone do not tell how their images came to the network, but spatial ones are ADM's.

    Raises:
        ValueError: statistics alone of another network, or of another pipeline.
    """
    alone = isinstance(reference, Statistics)
    statistics = reference if isinstance(reference, Statistics) else reference.statistics
    if statistics is None or (not alone and (extractor.distance != "FID" or pipeline != "adm")):
        return None
    for asked, found in (
        (extractor.dimensions, statistics.dimensions),
        (extractor.spatial_dimensions, statistics.spatial_dimensions),
    ):
        if found is not None and found != asked:
            raise ValueError(
                f"reference = {statistics.name!r}: statistics of {found} features, {extractor.network} has {asked}; "
                "give statistics of the same network"
            )
    if statistics.spatial is not None and pipeline != "adm":
        raise ValueError(
            f"reference = {statistics.name!r}: holds mu_s, as ADM's statistics do, whose images were prepared in "
            f"another way than pipeline = {pipeline!r}; leave --pipeline out"
        )
    return statistics


def _target(statistics: Statistics | None, real: Features | None) -> measures.Reference:
    """What samples are measured against; there is at least one of the two."""
    if statistics is not None:
        return measures.Reference(statistics.pool, statistics.spatial, real)
    if real is None:
        raise ValueError("reference: has neither images nor statistics")
    return measures.Reference.of(real)


# --- what is reported ---


def _floor(
    sides: Sides,
    statistics: Statistics | None,
    target: measures.Reference,
    real: Features | None,
    other: Features | None,
    distance: str,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Value]]:
    """Which real images stand for the best that can be reached, and their measures."""
    if sides.floor is not None and other is not None:
        described = {**_described(sides.floor), "against": "the reference"}
        return described, measures.measure(other, target, distance, seed, "none")
    if real is None or isinstance(sides.reference, Statistics) or sides.reference.count < 4:
        return {}, {}
    if statistics is not None:
        described = {"name": "images of the reference", "images": sides.reference.count, "against": "its statistics"}
        return described, measures.measure(real, target._replace(features=None), distance, seed, "none")
    order, taken = _order(sides.reference), min(sides.samples.count, sides.reference.count // 2)
    some = torch.zeros(len(order), dtype=torch.bool)
    some[evenly_spaced(len(order), taken)] = True
    part, rest = real.select(order[some]), real.select(order[~some])
    described = {"name": "some of the reference", "images": taken, "against": f"its other {len(order) - taken}"}
    return described, measures.measure(part, measures.Reference.of(rest), distance, seed, "none")


def _protocol(sides: Sides, extractor: Extractor, statistics: Statistics | None, seed: int) -> dict[str, Any]:
    """All that decides the values besides what the samples look like."""
    reference = sides.reference
    return {
        **extractor.describe(),
        "samples": sides.samples.count,
        "samples_lossy": sides.samples.lossy,
        "size": "{1}x{0}".format(*sides.samples.shape),
        "reference": reference.name,
        "reference_sha256": reference.sha256,
        "reference_images": reference.count if isinstance(reference, ImageSet) else "statistics alone",
        "reference_statistics": "of the file" if statistics is not None else "of these images",
        **measures.PROTOCOL,
        "seed": seed,
    }


def _described(images: ImageSet) -> dict[str, Any]:
    drawn_with = {} if images.drawn_with is None else {"drawn_with": images.drawn_with}
    return {"name": images.name, "images": images.count, "sha256": images.sha256} | drawn_with


def _speed(images: int, seconds: float | None, whole: float) -> dict[str, float]:
    """Samples a second through the network, where the cache had not all of them, and what the evaluation took."""
    rate = {} if seconds is None else {"images_per_second": images / seconds}
    return rate | {"seconds": whole, "peak_bytes": peak_bytes()}


def _notes(sides: Sides, floor: dict[str, Any], extractor: Extractor) -> list[str]:
    """What must be known to read the values."""
    sets = {"samples": sides.samples, "reference": sides.reference, "floor": sides.floor}
    opened = {field: images for field, images in sets.items() if isinstance(images, ImageSet)}
    notes = [f"{field}: {note}" for field, images in opened.items() for note in images.notes]
    for field, images in opened.items():
        if few := too_few(images.count, extractor.dimensions):
            notes.append(f"{field}: {few}")
    if not floor:
        notes.append("no floor: the reference's images are too few or not there; give other real images as --floor")
    elif floor["images"] < sides.samples.count:
        notes.append(f"floor: of {floor['images']} images, fewer than the samples: a distance of so few is too high")
    if (
        isinstance(sides.reference, ImageSet)
        and sides.floor is not None
        and sides.floor.sha256 == sides.reference.sha256
    ):
        notes.append("floor: the very images of the reference, which tell nothing; give others")
    if extractor.network == "inception-v3" and not extractor.weights_sha256.startswith(PUBLIC_SHA256):
        notes.append(f"weights: not the public file {PUBLIC_FILE}; distances are no published FIDs")
    shares = [_shares(images) for images in opened.values()]
    if any(_uneven(a, b) for a, b in pairwise(shares) if a is not None and b is not None):
        notes.append("samples and real images hold the classes in different shares, which is a part of the distance")
    return notes


def _shares(images: ImageSet) -> Tensor | None:
    if images.labels_N is None:
        return None
    return images.labels_N.bincount(minlength=len(images.classes)) / images.count


def _uneven(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() > UNEVEN)


def _classes(sides: Sides, ours: Features, real: Features | None, kernel: str, seed: int) -> list[dict[str, Any]]:
    samples, reference = sides.samples, sides.reference
    if real is None or isinstance(reference, Statistics) or samples.labels_N is None or reference.labels_N is None:
        return []
    labels_N, real_labels_M = samples.labels_N, reference.labels_N
    return measures.measure_classes(ours, labels_N, real, real_labels_M, reference.classes, kernel, seed)


def _fidelity(restored: dict[int, Fidelity]) -> dict[str, Value]:
    """Means over all reconstructions, with intervals; nothing of other samples."""
    parts = [restored[row] for row in sorted(restored)]
    if not parts:
        return {}
    columns = {
        "PSNR, dB": [part.psnr_B for part in parts],
        "SSIM": [part.ssim_B for part in parts if part.ssim_B is not None],
    }
    return {name: mean(torch.cat(column)) for name, column in columns.items() if column}
