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

from mvar.bench.cases import SEED, Case, Subject, rerunning
from mvar.bench.parts import PARTS, Ledger, Phase, Stopwatch, Work
from mvar.bench.report import Batch, Result, Rival, Split
from mvar.bench.results import measured_on
from mvar.bench.roofline import HEADROOM, Peaks
from mvar.checkpoint.placement import Dtype
from mvar.generator.config import PRESETS
from mvar.machine import check_memory, peak_bytes
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
    main, first = subjects[0], batches[0]
    start = time.perf_counter()
    model = main.model()
    case = Case(model.sampler(SEED, guidance=guidance))
    case.draw(first, Ledger())
    first_image_seconds, peak = time.perf_counter() - start, peak_bytes()

    rivals = [
        Case(case.sampler, partial(rerunning, case.sampler.generator))
        if rival == PREFIX
        else Case(other.model().sampler(SEED, guidance=guidance))
        for rival, other in zip(against, subjects[1:], strict=True)
    ]
    for rival in rivals:
        rival.draw(first, Ledger())
    peaks = Peaks(getattr(torch, DTYPES[dtype]))
    ours, theirs, watches = _taking_turns(case, rivals, batches, rounds, peaks)
    measured = [_batch(batch, ours[batch], peaks.floor(main.work(batch, guidance))) for batch in batches]
    middle = sorted(range(rounds), key=ours[first].__getitem__)[rounds // 2]
    return Result(
        preset=name,
        dtype=dtype,
        batch=first,
        guidance=guidance,
        threads=torch.get_num_threads(),
        rounds=ours[first],
        seconds=measured[0].seconds,
        floor_seconds=measured[0].floor_seconds,
        fraction=measured[0].floor_seconds / measured[0].seconds,
        first_image_seconds=first_image_seconds,
        peak_bytes=peak,
        weight_bytes=main.weight_bytes(),
        **_splits(model, watches[middle].seconds, main.work(first, guidance), peaks),
        matmul_flops=peaks.matmul_flops,
        bandwidth=peaks.bandwidth,
        batches=measured,
        against=[
            _rival(rival, ours[first], seconds, peaks.floor(subject.work(first, guidance)))
            for rival, subject, seconds in zip(against, subjects[1:], theirs, strict=True)
        ],
        machine=measured_on(),
    )


def _batch(batch: int, seconds: list[float], floor: float) -> Batch:
    middle = median(seconds)
    return Batch(batch=batch, seconds=middle, floor_seconds=floor, images_per_second=batch / middle)


def _rival(name: str, ours: list[float], theirs: list[float], floor: float) -> Rival:
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    return Rival(name=name, seconds=median(theirs), floor_seconds=floor, ratio=ratio)


def _taking_turns(
    case: Case, rivals: Sequence[Case], batches: Sequence[int], rounds: int, peaks: Peaks
) -> tuple[dict[int, list[float]], list[list[float]], list[Stopwatch]]:
    """Seconds of each round: of the case by batch size, of each rival; and of the case's parts at the first size."""
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
    return ours, theirs, watches


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
        if rival not in (PREFIX, *DTYPES, *PRESETS):
            raise ValueError(f"against = {rival!r}: choose from {', '.join((PREFIX, *DTYPES, *PRESETS))}")
        found.append(Subject(rival if rival in PRESETS else name, DTYPES.get(rival, DTYPES[dtype])))
    images = max(batches) * max(subject.image_bytes() for subject in found)
    needed = sum(subject.weight_bytes() for subject in set(found)) + images + HEADROOM
    what = f"preset, batch: weights, {max(batches)} images and room to measure in"
    check_memory(needed, what, "give a smaller preset, a smaller batch or fewer rivals")
    return found


def _splits(model: Model, seconds: dict[Phase, float], work: list[Work], peaks: Peaks) -> dict[str, Any]:
    """The parts and the scales of one round, with the floor of each."""

    def split(belongs: Callable[[Phase], bool]) -> Split:
        return Split(
            seconds=sum(s for phase, s in seconds.items() if belongs(phase)),
            floor_seconds=peaks.floor(item for item in work if belongs(item.phase)),
        )

    scales = []
    for k, (height, width) in enumerate(model.tokenizer.config.schedule.shapes):
        at_scale = split(lambda phase: phase.scale == k)  # noqa: B023  # used at once
        parts = {part: seconds[Phase(part, k)] for part in PARTS if Phase(part, k) in seconds}
        scales.append({"scale": f"{height}x{width}", **asdict(at_scale), "parts": parts})
    return {"parts": {part: split(lambda phase: phase.part == part) for part in PARTS}, "scales": scales}  # noqa: B023
