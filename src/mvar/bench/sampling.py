"""What drawing images takes: seconds of each scale and part, against the machine's floor and against other ways.

All cases run in one process and take turns, round by round, and the machine's own peaks are measured between them.
"""

import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from mvar.bench.cases import Case, Subject, rerunning
from mvar.bench.measuring import HEADROOM, SEED, Peaks, take_turns
from mvar.bench.parts import PARTS, Ledger, Phase, Stopwatch, Work
from mvar.checkpoint.placement import Dtype
from mvar.generator.config import PRESETS
from mvar.machine import check_memory, peak_bytes
from mvar.model import Model

PREFIX = "prefix"
DTYPES: dict[str, Dtype] = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}


def bench(
    name: str, dtype: str, batches: Sequence[int], guidance: float, rounds: int, against: Sequence[str] = ()
) -> dict[str, Any]:
    """Draw images on the CPU.

    Args:
        name: of a generator preset, which gets random weights, or of a model as `mvar.load` takes it.
        dtype: of the weights in use.
        batches: images at once; the first one is looked at in detail.
        guidance: strength of guidance; 0 leaves out the second branch.
        rounds: timed, of everything, after one to warm up.
        against: what takes turns with it: "prefix", other dtypes, other presets.

    Returns:
        Medians of all rounds at the first batch size, of other sizes and rivals, each with its floor: what matrix
        products and convolutions take at the machine's best. Parts and scales are those of the median round.

    Raises:
        ValueError: an unknown name or rival, or too little free memory.
    """
    subjects = _subjects(name, dtype, batches, against)
    main, first = subjects[0], batches[0]
    start = time.perf_counter()
    model = main.model()
    case = Case(model.sampler(SEED, guidance=guidance))
    case.draw(first, Ledger())
    first_image_seconds, peak = time.perf_counter() - start, peak_bytes()

    watches: list[Stopwatch] = []

    def watched() -> float:
        watches.append(Stopwatch())
        with watches[-1].watching(case.sampler):
            return case.draw(first, watches[-1])

    turns: dict[Hashable, Callable[[], float]] = {first: watched}
    for rival, subject in zip(against, subjects[1:], strict=True):
        turns[rival] = partial(_other(rival, case, subject, guidance).draw, first, Ledger())
    turns |= {batch: partial(case.draw, batch, Ledger()) for batch in batches[1:]}
    peaks = Peaks(getattr(torch, DTYPES[dtype]))
    seconds = take_turns(turns, rounds, peaks=[peaks])

    def measured(key: Hashable, subject: Subject, batch: int) -> dict[str, Any]:
        return {"seconds": median(seconds[key]), "floor_seconds": peaks.floor(subject.work(batch, guidance))}

    ours = seconds[first]
    overall = measured(first, main, first)
    middle = sorted(range(rounds), key=ours.__getitem__)[rounds // 2]
    sizes = []
    for batch in batches:
        size = measured(batch, main, batch)
        sizes.append({**size, "batch": batch, "images_per_second": batch / size["seconds"]})
    rivals = []
    for rival, subject in zip(against, subjects[1:], strict=True):
        ratio = median(a / b for a, b in zip(ours, seconds[rival], strict=True))
        rivals.append({**measured(rival, subject, first), "name": rival, "ratio": ratio})
    return {
        **overall,
        "preset": name,
        "dtype": dtype,
        "batch": first,
        "guidance": guidance,
        "threads": torch.get_num_threads(),
        "rounds": ours,
        "fraction": overall["floor_seconds"] / overall["seconds"],
        "first_image_seconds": first_image_seconds,  # from building the model to its first batch
        "peak_bytes": peak,  # largest resident set of the process up to then
        "weight_bytes": main.weight_bytes(),
        **_splits(model, watches[1 + middle].seconds, main.work(first, guidance), peaks),
        "matmul_flops": peaks.matmul_flops,
        "bandwidth": peaks.bandwidth,
        "batches": sizes,
        "against": rivals,
    }


def _other(rival: str, case: Case, subject: Subject, guidance: float) -> Case:
    if rival == PREFIX:
        return Case(case.sampler, partial(rerunning, case.sampler.generator))
    return Case(subject.model().sampler(SEED, guidance=guidance))


def _subjects(name: str, dtype: str, batches: Sequence[int], against: Sequence[str]) -> list[Subject]:
    """The case and its rivals, everything checked."""
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
    """The parts and the scales (coarse to fine, without the decoder) of one round, with the floor of each."""

    def split(belongs: Callable[[Phase], bool]) -> dict[str, float]:
        return {
            "seconds": sum(s for phase, s in seconds.items() if belongs(phase)),
            "floor_seconds": peaks.floor(item for item in work if belongs(item.phase)),
        }

    scales = []
    for k, (height, width) in enumerate(model.tokenizer.config.schedule.shapes):
        at_scale = split(lambda phase: phase.scale == k)  # noqa: B023  # used at once
        parts = {part: seconds[Phase(part, k)] for part in PARTS if Phase(part, k) in seconds}
        scales.append({"scale": f"{height}x{width}", **at_scale, "parts": parts})
    return {"parts": {part: split(lambda phase: phase.part == part) for part in PARTS}, "scales": scales}  # noqa: B023
