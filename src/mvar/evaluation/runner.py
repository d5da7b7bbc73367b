"""One evaluation from end to end: samples against real images, by a protocol that is written into the report."""

import hashlib
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mvar import __version__
from mvar.data.subset import evenly_spaced
from mvar.evaluation import measures
from mvar.evaluation.collect import Alone, Features, Processes, collect
from mvar.evaluation.frechet import too_few
from mvar.evaluation.images import psnr, ssim
from mvar.evaluation.report import Report, Value, write
from mvar.evaluation.sets import ImageSet, Statistics, check_pair, open_set
from mvar.features.extractors import Extractor, find_extractor
from mvar.features.inception import Pipeline
from mvar.files import writable_folder
from mvar.machine import machine
from mvar.model import Model
from mvar.sampling.engine import to_uint8
from mvar.sampling.protocol import read_protocol
from mvar.validation import raise_problems

BATCH = 64


@dataclass(frozen=True, kw_only=True)
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
    limit: int | None = None
    cache: str | None = None
    batch_size: int = BATCH
    allow_jpeg: bool = False
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"


class Sides(NamedTuple):
    """What is compared with what, and with which other real images for the floor."""

    samples: ImageSet
    reference: ImageSet | Statistics
    floor: ImageSet | None


class Fidelity(NamedTuple):
    """Of each reconstruction in a batch: PSNR in dB, and SSIM."""

    psnr_B: Tensor
    ssim_B: Tensor


def evaluate(
    samples: str | Model,
    reference: str,
    *,
    out: str | None = None,
    processes: Processes = Alone(),  # noqa: B008  # a constant
    **options: Any,
) -> Report:
    """Compare samples with real images.

    Args:
        samples: folder or .npz of images; or a model, whose reconstructions of the reference are the samples.
        reference: folder or .npz of real images, or an .npz of their statistics.
        out: folder for report.json.
        processes: that share the work, as torchrun starts them; the values are the same for any number.
        options: see `Options`.

    Returns:
        The report, in every process.

    Raises:
        ValueError: one line for what cannot be used, before the long work unless a file turns out to be damaged.
    """
    chosen = Options(**options)
    _check(chosen)
    folder = None if out is None else writable_folder(out, "out")
    cache = None if chosen.cache is None else writable_folder(chosen.cache, "cache")
    fidelity: dict[int, Fidelity] = {}
    sides = _open(samples, reference, chosen, fidelity)
    extractor = find_extractor(chosen.features, chosen.weights, chosen.device, chosen.dtype, pipeline=chosen.pipeline)
    statistics = _statistics(sides.reference, extractor)
    features = partial(collect, extractor=extractor, batch_size=chosen.batch_size, processes=processes)

    start = time.perf_counter()
    ours = features(sides.samples, label="samples", cache=None if isinstance(samples, Model) else cache)
    seconds = time.perf_counter() - start
    real = features(sides.reference, label="reference", cache=cache) if isinstance(sides.reference, ImageSet) else None
    other = features(sides.floor, label="floor", cache=cache) if sides.floor is not None else None

    target = _target(statistics, real)
    metrics = measures.measure(ours, target, extractor.distance, chosen.seed)
    floor, best = _floor(sides, target, real, other, extractor.distance, chosen.seed)
    metrics = {
        name: replace(value, floor=best[name].value if name in best else None) for name, value in metrics.items()
    }
    if isinstance(samples, Model):
        metrics |= _fidelity(fidelity, processes)
    drawn_with = None if isinstance(samples, Model) else read_protocol(samples)
    report = Report(
        protocol=_protocol(sides, extractor, statistics, chosen.seed),
        samples=_described(sides.samples) | (drawn_with or {}),
        floor=floor,
        metrics=metrics,
        classes=_classes(sides, ours, real, measures.NAMES[extractor.distance].kernel),
        notes=_notes(sides, extractor),
        speed={"images_per_second": sides.samples.count / seconds},
        machine={"mvar": __version__, **machine()},
    )
    if folder is not None and processes.rank == 0:
        write(report, folder)
    return report


def _check(chosen: Options) -> None:
    numbers = {"limit": chosen.limit, "batch_size": chosen.batch_size}
    raise_problems(
        [f"{name} = {n}: must be at least 1" for name, n in numbers.items() if n is not None and n < 1]
        + ([] if chosen.limit != 1 else ["limit = 1: a covariance needs at least 2 images"])
    )


# --- what is compared ---


def _open(samples: str | Model, reference: str, chosen: Options, fidelity: dict[int, Fidelity]) -> Sides:
    real = _at_most(open_set(reference, "reference", allow_jpeg=True), chosen.limit)
    if isinstance(samples, Model):
        if isinstance(real, Statistics):
            raise ValueError(f"reference = {reference!r}: holds statistics alone; give images to reconstruct")
        drawn = _reconstructed(samples, real, fidelity)
    else:
        opened = _at_most(open_set(samples, "samples", allow_jpeg=chosen.allow_jpeg), chosen.limit)
        if isinstance(opened, Statistics):
            raise ValueError(f"samples = {samples!r}: holds statistics alone; give the images")
        drawn = opened
    check_pair(drawn, real)
    if chosen.floor is None:
        return Sides(drawn, real, None)
    other = _at_most(open_set(chosen.floor, "floor", allow_jpeg=True), drawn.count)
    if isinstance(other, Statistics) or other.shape != drawn.shape:
        found = "statistics alone" if isinstance(other, Statistics) else f"images of {other.shape[1]}x{other.shape[0]}"
        raise ValueError(f"floor = {chosen.floor!r}: holds {found}; give real images of the samples' size")
    return Sides(drawn, real, other)


def _at_most(images: ImageSet | Statistics, most: int | None) -> ImageSet | Statistics:
    """At most so many of the images, evenly spaced, in the same order."""
    if isinstance(images, Statistics) or most is None or images.count <= most:
        return images
    places = evenly_spaced(images.count, most)

    def read(rows: range) -> np.ndarray:
        return np.concatenate([images.read(range(i, i + 1)) for i in places[rows.start : rows.stop]])

    sha256 = hashlib.sha256(f"{images.sha256} {most}".encode()).hexdigest()
    labels_N = None if images.labels_N is None else images.labels_N[places]
    return replace(images, count=most, labels_N=labels_N, sha256=sha256, read=read, statistics=None)


def _reconstructed(model: Model, real: ImageSet, fidelity: dict[int, Fidelity]) -> ImageSet:
    """The images after the tokenizer; how far each batch is from the original is noted by its first row."""
    if real.shape != model.tokenizer.config.image_shape:
        asked, found = ("{1}x{0}".format(*shape) for shape in (model.tokenizer.config.image_shape, real.shape))
        raise ValueError(f"reference = {real.name!r}: has images of {found}, the tokenizer takes {asked}; resize them")

    def read(rows: range) -> np.ndarray:
        pixels_B3HW = real.batch(rows)
        restored_BHW3 = to_uint8(model.tokenizer.reconstruct(pixels_B3HW.to(model.device) / 255))
        restored_B3HW = torch.from_numpy(restored_BHW3).permute(0, 3, 1, 2)
        fidelity[rows.start] = Fidelity(psnr(restored_B3HW, pixels_B3HW), ssim(restored_B3HW, pixels_B3HW))
        return restored_BHW3

    return replace(real, name=f"{real.name}, reconstructed", read=read, statistics=None)


def _statistics(reference: ImageSet | Statistics, extractor: Extractor) -> Statistics | None:
    """Those of the reference, where they are of this network.

    An .npz with images and statistics, as ADM's references are, has Inception's, of more images than it holds.

    Raises:
        ValueError: a reference of nothing but another network's statistics.
    """
    if isinstance(reference, ImageSet):
        statistics = reference.statistics
        return statistics if statistics is not None and extractor.distance == "FID" else None
    if reference.dimensions != extractor.dimensions:
        raise ValueError(
            f"reference = {reference.name!r}: statistics of {reference.dimensions} features, {extractor.network} has "
            f"{extractor.dimensions}; give statistics of the same network"
        )
    return reference


def _target(statistics: Statistics | None, real: Features | None) -> measures.Reference:
    """What samples are measured against; there is at least one of the two."""
    if real is None or statistics is None:
        if real is not None:
            return measures.Reference.of(real)
        if statistics is not None:
            return measures.Reference(statistics.pool, statistics.spatial)
        raise ValueError("reference: has neither images nor statistics")
    return measures.Reference(statistics.pool, statistics.spatial, real)


# --- what is reported ---


def _floor(
    sides: Sides, target: measures.Reference, real: Features | None, other: Features | None, distance: str, seed: int
) -> tuple[dict[str, Any], dict[str, Value]]:
    """Which real images stand for the best that can be reached, and their measures."""
    if sides.floor is not None and other is not None:
        described = {**_described(sides.floor), "against": "the reference"}
        return described, measures.measure(other, target, distance, seed, intervals=False)
    if real is None or len(real.pooled_NF) < 4:
        return {}, {}
    even, odd = (real.select(torch.arange(i, len(real.pooled_NF), 2)) for i in (0, 1))
    described = {"name": "half of the reference", "images": len(odd.pooled_NF), "against": "its other half"}
    return described, measures.measure(odd, measures.Reference.of(even), distance, seed, intervals=False)


def _protocol(sides: Sides, extractor: Extractor, statistics: Statistics | None, seed: int) -> dict[str, Any]:
    """All that decides the values besides what the samples look like."""
    reference = sides.reference
    protocol: dict[str, Any] = {
        **extractor.describe(),
        "samples": sides.samples.count,
        "size": "{1}x{0}".format(*sides.samples.shape),
        "reference": reference.name,
        "reference_sha256": reference.sha256,
        "reference_images": reference.count if isinstance(reference, ImageSet) else "statistics alone",
        "reference_statistics": "of the file" if statistics is not None else "of these images",
        **measures.PROTOCOL,
        "seed": seed,
    }
    return protocol


def _described(images: ImageSet) -> dict[str, Any]:
    return {"name": images.name, "images": images.count, "sha256": images.sha256}


def _notes(sides: Sides, extractor: Extractor) -> list[str]:
    """What must be known to read the values."""
    sets = (sides.samples, sides.reference, sides.floor)
    notes = [note for images in sets if isinstance(images, ImageSet) for note in images.notes]
    counts = {images.count for images in sets if isinstance(images, ImageSet)}
    few = too_few(min(counts), extractor.dimensions)
    return notes if few is None else [few, *notes]


def _classes(sides: Sides, ours: Features, real: Features | None, kernel: str) -> list[dict[str, Any]]:
    samples, reference = sides.samples, sides.reference
    if real is None or isinstance(reference, Statistics) or samples.labels_N is None or reference.labels_N is None:
        return []
    return measures.measure_classes(ours, samples.labels_N, real, reference.labels_N, reference.classes, kernel)


def _fidelity(fidelity: dict[int, Fidelity], processes: Processes) -> dict[str, Value]:
    """Means over all reconstructions, with intervals."""
    parts = [part for found in processes.gather(fidelity) for part in found.values()]
    columns = {"PSNR, dB": [part.psnr_B for part in parts], "SSIM": [part.ssim_B for part in parts]}
    return {name: measures.mean(torch.cat(column)) for name, column in columns.items()}
