"""What drawing images takes: seconds of each scale and part, against the machine's floor and against other ways.

All cases run in one process and take turns, round by round, and the machine's own peaks are measured between them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import torch

from mvar import __version__
from mvar.bench.cases import SEED, Case, Subject, rerunning
from mvar.bench.parts import PARTS, Ledger, Place, Stopwatch, Work
from mvar.bench.report import Batch, Result, Rival, Split
from mvar.bench.roofline import HEADROOM, Peaks
from mvar.checkpoint.placement import Dtype
from mvar.generator.config import PRESETS
from mvar.machine import check_memory, machine, peak_bytes
from mvar.model import Model
from mvar.progress import track
from mvar.settings import Count, Counts, check

PREFIX = "prefix"
DTYPES: dict[str, Dtype] = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}


def bench(
    name: str,
    dtype: str,
    batches: Sequence[int],
    guidance: float,
    rounds: int,
    against: Sequence[str] = (),
) -> Result:
    """Draw images on the CPU.

    Args:
        name: of a generator preset, which gets random weights, or of a model as `mvar.load` takes it.
        dtype: of the weights in use.
        batches: images at once; the first one is looked at in detail.
        guidance: strength of guidance; 0 leaves out the second branch.
        rounds: timed, of everything.
        against: what takes turns with it: "prefix", other dtypes, other presets.

    Raises:
        ValueError: an unknown name, dtype or rival, numbers out of range, or too little free memory.
    """
    subjects = _subjects(name, dtype, batches, rounds, against)
    main, *others = subjects
    start = time.perf_counter()
    model = main.model()
    case = Case(model.sampler(SEED, guidance=guidance))
    case.draw(batches[0], Ledger())
    first_image_seconds, peak = time.perf_counter() - start, peak_bytes()

    rivals = [
        Case(case.sampler, partial(rerunning, case.sampler.generator))
        if rival == PREFIX
        else Case(other.model().sampler(SEED, guidance=guidance))
        for rival, other in zip(against, others, strict=True)
    ]
    for rival in rivals:
        rival.draw(batches[0], Ledger())
    peaks = Peaks(getattr(torch, DTYPES[dtype]))
    ours: dict[int, list[float]] = {batch: [] for batch in batches}
    theirs: list[list[float]] = [[] for _ in rivals]
    watches = []
    for _ in track(range(rounds), rounds, "rounds"):
        peaks.measure()
        watches.append(watch := Stopwatch())
        with watch.watching(case.sampler):
            ours[batches[0]].append(case.draw(batches[0], watch))
        for rival, seconds in zip(rivals, theirs, strict=True):
            seconds.append(rival.draw(batches[0], Ledger()))
        for batch in batches[1:]:
            ours[batch].append(case.draw(batch, Ledger()))

    floors = {batch: peaks.floor(main.work(batch, guidance)) for batch in batches}
    seconds = ours[batches[0]]
    middle = sorted(range(rounds), key=seconds.__getitem__)[rounds // 2]
    return Result(
        preset=name,
        dtype=dtype,
        batch=batches[0],
        guidance=guidance,
        threads=torch.get_num_threads(),
        rounds=seconds,
        seconds=median(seconds),
        floor_seconds=floors[batches[0]],
        fraction=floors[batches[0]] / median(seconds),
        first_image_seconds=first_image_seconds,
        peak_bytes=peak,
        weight_bytes=main.weight_bytes(),
        **_splits(model, watches[middle].seconds, main.work(batches[0], guidance), peaks),
        matmul_flops=peaks.matmul_flops,
        bandwidth=peaks.bandwidth,
        batches=[
            Batch(
                batch=batch,
                seconds=median(ours[batch]),
                floor_seconds=floors[batch],
                images_per_second=batch / median(ours[batch]),
            )
            for batch in batches
        ],
        against=[
            Rival(
                name=rival,
                seconds=median(other),
                floor_seconds=peaks.floor(subject.work(batches[0], guidance)),
                ratio=median(a / b for a, b in zip(seconds, other, strict=True)),
            )
            for rival, subject, other in zip(against, others, theirs, strict=True)
        ],
        machine={"mvar": __version__, **machine()},
    )


def _subjects(name: str, dtype: str, batches: Sequence[int], rounds: int, against: Sequence[str]) -> list[Subject]:
    """The case and its rivals, everything checked."""
    check("batch", batches, Counts)
    check("rounds", rounds, Count)
    if not batches:
        raise ValueError("batch = []: give at least one")
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r}: choose from {', '.join(DTYPES)}")
    found = [Subject(name, DTYPES[dtype])]
    for rival in against:
        if rival in DTYPES:
            found.append(Subject(name, DTYPES[rival]))
        elif rival == PREFIX:
            found.append(found[0])
        elif rival in PRESETS:
            found.append(Subject(rival, DTYPES[dtype]))
        else:
            choices = ", ".join((PREFIX, *DTYPES, *PRESETS))
            raise ValueError(f"against = {rival!r}: choose from {choices}")
    images = max(batches) * max(subject.image_bytes() for subject in found)
    needed = sum(subject.weight_bytes() for subject in set(found)) + images + HEADROOM
    what = f"preset, batch: weights, {max(batches)} images and room to measure in"
    check_memory(needed, what, "give a smaller preset, a smaller batch or fewer rivals")
    return found


def _splits(model: Model, seconds: dict[Place, float], work: list[Work], peaks: Peaks) -> dict[str, Any]:
    """The parts and the scales of one round, with the floor of each."""

    def split(of: Callable[[Place], bool]) -> Split:
        return Split(
            seconds=sum(s for place, s in seconds.items() if of(place)),
            floor_seconds=peaks.floor(item for item in work if of(item.place)),
        )

    scales = []
    for k, (height, width) in enumerate(model.tokenizer.config.schedule.shapes):
        whole = split(lambda place: place.scale == k)  # noqa: B023  # used at once
        parts = {part: seconds[Place(part, k)] for part in PARTS if Place(part, k) in seconds}
        scales.append({"scale": f"{height}x{width}", **asdict(whole), "parts": parts})
    return {"parts": {part: split(lambda place: place.part == part) for part in PARTS}, "scales": scales}  # noqa: B023
