"""One evaluation from end to end: samples against real images, by a protocol that is written into the report."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

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
from mvar.evaluation.intervals import Value, mean
from mvar.evaluation.pairs import aligned, check_pair, of_classes, some_of
from mvar.evaluation.report import Report, write
from mvar.evaluation.sets import ImageSet, Statistics, open_set
from mvar.features.extractors import PUBLIC_FILE, PUBLIC_SHA256, Extractor, find_extractor
from mvar.features.inception import Pipeline
from mvar.files import writable_folder
from mvar.machine import machine, peak_bytes
from mvar.model import Model
from mvar.sampling.engine import to_uint8
from mvar.settings import MANY, Count, Seed, Switch, Whole, settings

BATCH = 64
UNEVEN = 0.01  # difference of a class's shares that a note mentions


@settings
class Options:
    """How samples are compared with real images: `mvar evaluate --help` describes each field."""

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
    """What is compared with what."""

    samples: ImageSet
    reference: ImageSet | Statistics
    floor: ImageSet | None  # other real images

    @property
    def opened(self) -> dict[str, ImageSet]:
        """Those that are images, by the options that named them."""
        return {field: images for field, images in self._asdict().items() if isinstance(images, ImageSet)}


# Of each batch of reconstructions, by its first row: PSNR in dB, and SSIM where images are large enough.
Fidelity = dict[int, dict[str, Tensor]]


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
        origin: what the report says of a model besides its tokenizer's hash, such as its name.
        processes: that share the work, as torchrun starts them; each returns the report.
        options: those of `mvar evaluate`.

    Raises:
        ValueError: one line for what cannot be used, before the long work unless a file turns out to be damaged.
    """
    begun = time.perf_counter()
    chosen = Options(**options)
    device = find_device(chosen.device)
    extractor = find_extractor(chosen.features, chosen.weights, device, chosen.dtype, pipeline=chosen.pipeline)
    folder = None if out is None else writable_folder(out, "out")
    cache = None if chosen.cache is None else writable_folder(chosen.cache, "cache")
    fidelity: Fidelity = {}
    sides = _open(samples, reference, chosen, fidelity, dict(origin or {}))
    statistics = _statistics(sides.reference, extractor, chosen.pipeline)

    def features(images: ImageSet | Statistics | None, label: str, cache: Path | None = cache) -> Collected:
        if not isinstance(images, ImageSet):
            return Collected(None, None)
        return collect(images, extractor, chosen.batch_size, processes, cache, label)

    ours, seconds = features(sides.samples, "samples", None if isinstance(samples, Model) else cache)
    real, other = features(sides.reference, "reference").features, features(sides.floor, "floor").features
    restored = {row: part for found in processes.gather(fidelity) for row, part in found.items()}

    def measured() -> Report:
        assert ours is not None  # for type checkers: this is the main process
        report = _report(sides, statistics, extractor, ours, real, other, isinstance(samples, Model), chosen.seed)
        rate = {} if seconds is None else {"images_per_second": sides.samples.count / seconds}
        speed = rate | {"seconds": time.perf_counter() - begun, "peak_bytes": peak_bytes()}
        report = replace(report, metrics=report.metrics | _fidelity(restored), speed=speed)
        if folder is not None:
            write(report, folder)
        return report

    return processes.on_main(measured)


# --- what is compared ---


def _open(samples: str | Model, reference: str, chosen: Options, fidelity: Fidelity, origin: dict[str, Any]) -> Sides:
    real = _at_most(open_set(reference, "reference", allow_jpeg=True), chosen.limit)
    if isinstance(samples, Model):
        real = _images(real, "reference", reference)
        drawn = _reconstructed(samples, real, fidelity, origin)
    else:
        opened = open_set(samples, "samples", allow_jpeg=chosen.allow_jpeg)
        drawn = _images(_at_most(opened, chosen.limit), "samples", samples)
    check_pair(drawn, real)
    other = None
    if chosen.floor is not None:
        opened = of_classes(open_set(chosen.floor, "floor", allow_jpeg=True), drawn)
        other = _images(_at_most(opened, drawn.count), "floor", chosen.floor)
        check_pair(drawn, other, "floor")
        other = aligned(other, drawn)
    sides = Sides(drawn, aligned(real, drawn) if isinstance(real, ImageSet) else real, other)
    for field, images in sides.opened.items():
        if images.count < 2:
            raise ValueError(f"{field} = {images.name!r}: holds {images.count} image; a covariance needs at least 2")
    return sides


def _images(found: ImageSet | Statistics, field: str, path: str) -> ImageSet:
    if isinstance(found, Statistics):
        raise ValueError(f"{field} = {path!r}: holds statistics alone; give images")
    return found


def _at_most(images: ImageSet | Statistics, most: int | None) -> ImageSet | Statistics:
    """At most this many of the images, always the same, in their order: evenly of the classes, else at random."""
    if isinstance(images, Statistics) or most is None or images.count <= most:
        return images
    return some_of(images, _order(images)[evenly_spaced(images.count, most)].sort().values.tolist())


def _order(images: ImageSet) -> Tensor:
    """All indices, class by class; in random order where there are no classes, as the files' order may be periodic."""
    if images.labels_N is not None:
        return images.labels_N.argsort(stable=True)
    return torch.randperm(images.count, generator=torch.Generator().manual_seed(0))


def _reconstructed(model: Model, real: ImageSet, fidelity: Fidelity, origin: dict[str, Any]) -> ImageSet:
    """The images after the tokenizer; `fidelity` gets that of each batch, by its first row."""
    height, width = model.tokenizer.config.image_shape
    if real.shape != (height, width):
        problem = f"has images of {real.size}, the tokenizer takes {width}x{height}"
        raise ValueError(f"reference = {real.name!r}: {problem}; resize them")

    def read(rows: Sequence[int]) -> np.ndarray:
        pixels_B3HW = real.batch(rows)
        restored_BHW3 = to_uint8(model.tokenizer.reconstruct(pixels_B3HW.to(model.device) / 255))
        restored_B3HW = torch.from_numpy(restored_BHW3).permute(0, 3, 1, 2)
        fidelity[rows[0]] = {"PSNR, dB": psnr(restored_B3HW, pixels_B3HW)}
        if min(real.shape) >= WINDOW:
            fidelity[rows[0]]["SSIM"] = ssim(restored_B3HW, pixels_B3HW)
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
    """The reference's statistics, where they are of this network and of images prepared in the same way.

    An .npz with images and statistics, as ADM's references are, has Inception's, of more images than it holds.
    Statistics alone do not say how their images were prepared, but spatial ones are ADM's.

    Raises:
        ValueError: statistics alone of another network, or of another pipeline.
    """
    alone = isinstance(reference, Statistics)
    statistics = reference if isinstance(reference, Statistics) else reference.statistics
    if statistics is None or (not alone and (extractor.distance != "FID" or pipeline != "adm")):
        return None
    named, dimensions = f"reference = {statistics.name!r}", extractor.dimensions
    if len(statistics.pooled.mean_F) != dimensions:
        found = f"statistics of {len(statistics.pooled.mean_F)} features, {extractor.network} has {dimensions}"
        raise ValueError(f"{named}: {found}; give statistics of the same network")
    if statistics.spatial is not None and pipeline != "adm":
        raise ValueError(
            f"{named}: holds mu_s, as ADM's statistics do, whose images were prepared in another way than "
            f"pipeline = {pipeline!r}; leave --pipeline out"
        )
    return statistics


# --- what is reported ---


def _report(
    sides: Sides,
    statistics: Statistics | None,
    extractor: Extractor,
    ours: Features,
    real: Features | None,
    other: Features | None,
    restored: bool,
    seed: int,
) -> Report:
    """All but fidelity and speed; without statistics, there are features of real images."""
    if statistics is not None:
        target = measures.Reference(statistics.pooled, statistics.spatial, real)
    else:
        assert real is not None
        target = measures.Reference.of(real)
    resampled: Literal["samples", "pairs"] = "pairs" if restored and statistics is None else "samples"
    metrics = measures.measure(ours, target, extractor.distance, seed, resampled)
    floor, best = _floor(sides, target, other, statistics is not None, extractor.distance, seed)
    for name in best.keys() & metrics.keys():
        metrics[name] = replace(metrics[name], floor=best[name].value)
    return Report(
        protocol=_protocol(sides, extractor, statistics, seed),
        samples=_described(sides.samples),
        floor=floor,
        metrics=metrics,
        classes=_classes(sides, ours, real, extractor.distance, seed),
        notes=_notes(sides, floor, extractor),
        speed={},
        machine={"mvar": __version__, **machine()},
    )


def _floor(
    sides: Sides, target: measures.Reference, other: Features | None, by_statistics: bool, distance: str, seed: int
) -> tuple[dict[str, Any], dict[str, Value]]:
    """Which real images stand for the best that can be reached, and their measures."""
    reference, real = sides.reference, target.features
    if sides.floor is not None and other is not None:
        described = {**_described(sides.floor), "against": "the reference"}
        return described, measures.measure(other, target, distance, seed, "none")
    if real is None or isinstance(reference, Statistics) or reference.count < 4:
        return {}, {}
    if by_statistics:
        described = {"name": "images of the reference", "images": reference.count, "against": "its statistics"}
        return described, measures.measure(real, target._replace(features=None), distance, seed, "none")
    order, taken = _order(reference), min(sides.samples.count, reference.count // 2)
    some = torch.zeros(len(order), dtype=torch.bool)
    some[evenly_spaced(len(order), taken)] = True
    part, rest = real.select(order[some]), real.select(order[~some])
    described = {"name": "some of the reference", "images": taken, "against": f"its other {len(order) - taken}"}
    return described, measures.measure(part, measures.Reference.of(rest), distance, seed, "none")


def _protocol(sides: Sides, extractor: Extractor, statistics: Statistics | None, seed: int) -> dict[str, Any]:
    """All that decides the values besides the samples' pixels."""
    reference = sides.reference
    return {
        **extractor.describe(),
        "samples": sides.samples.count,
        "samples_lossy": sides.samples.lossy,
        "size": sides.samples.size,
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


def _notes(sides: Sides, floor: dict[str, Any], extractor: Extractor) -> list[str]:
    """What a reader must know to interpret the values."""
    notes = [f"{field}: {note}" for field, images in sides.opened.items() for note in images.notes]
    few = {field: too_few(images.count, extractor.dimensions) for field, images in sides.opened.items()}
    notes += [f"{field}: {warning}" for field, warning in few.items() if warning]
    if not floor:
        notes.append("no floor: the reference's images are too few or missing; give other real images as --floor")
    elif floor["images"] < sides.samples.count:
        notes.append(f"floor: of {floor['images']} images, fewer than the samples: a distance of so few is too high")
    if extractor.network == "inception-v3" and not extractor.weights_sha256.startswith(PUBLIC_SHA256):
        notes.append(f"weights: not the public file {PUBLIC_FILE}; distances are no published FIDs")
    labelled = [(images.labels_N, images) for images in sides.opened.values() if images.labels_N is not None]
    shares = [labels_N.bincount(minlength=len(images.classes)) / images.count for labels_N, images in labelled]
    if any((a - b).abs().max() > UNEVEN for a, b in pairwise(shares) if a.shape == b.shape):
        notes.append("samples and real images hold the classes in different shares, which is a part of the distance")
    return notes


def _classes(sides: Sides, ours: Features, real: Features | None, distance: str, seed: int) -> list[dict[str, Any]]:
    labels_N, reference = sides.samples.labels_N, sides.reference
    if real is None or labels_N is None or isinstance(reference, Statistics) or reference.labels_N is None:
        return []
    return measures.measure_classes(ours, labels_N, real, reference.labels_N, reference.classes, distance, seed)


def _fidelity(restored: Fidelity) -> dict[str, Value]:
    """Means over all reconstructions, with intervals."""
    parts = [restored[row] for row in sorted(restored)]
    return {name: mean(torch.cat([part[name] for part in parts])) for name in (parts[0] if parts else ())}
