"""The records of runs on disk, and which runs a study needs: learning rates and marks follow from records.

`mvar study run` and `mvar study report` derive the same runs from the same files, so that a report is made of exactly
the runs that its study asks for, and of no others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from mvar.generator.config import GeneratorConfig
from mvar.studies import page
from mvar.studies.comparing import timing
from mvar.studies.comparing.plan import DataSet, Run, Scale, Study, read_named
from mvar.text import some

STEPS, MINUTES = "equal steps", "equal minutes"
FURTHER = 3  # learning rates tried beyond those of a scale
UNITS = 10  # into which M-VAR's steps are divided to count minutes: times are known to about 3 %
LOSS = "bits_per_token"
OF_SAMPLES = ("distance", "accuracy", "precision", "recall")
DIGEST = 10 * "[0-9a-f]"  # in the names of files


def path_of(run: Run, reports: Path) -> Path:
    """The file of a run's record."""
    return reports / f"{run.name}.json"


def read(run: Run, reports: Path) -> dict[str, Any]:
    """A run's record.

    Raises as `read_named`, and ValueError for one that lacks what `table` needs.
    """
    path = path_of(run, reports)
    record = read_named(path, run.config)
    of_run, of_marks = {"tokenizer", "marks"}, {"steps", LOSS}
    if run.sampled:
        of_run, of_marks = of_run | {"protocol", "floor", "restored"}, of_marks | {*OF_SAMPLES, "distance_interval"}
    whole = of_run <= record.keys() and all(of_marks <= mark.keys() for mark in record["marks"])
    if not whole or [mark["steps"] for mark in record["marks"]] != list(run.marks):
        raise ValueError(f"reports = {str(path)!r}: is not a whole record; delete it and run the study again")
    return record


def check(data: DataSet, contents: Mapping[str, str], distance: str, reports: Path) -> None:
    """Refuse records of a data set that were made with another tokenizer, of other images, or measured otherwise.

    Args:
        contents: hashes of tokenizer and images, as in `Prepared`.
        distance: name of the distance that samples are compared by.
    """
    found = {path.name: page.read_json(path, "reports") for path in sorted(reports.glob(f"{data.name}-{DIGEST}.json"))}
    for what, content in contents.items():
        others = [name for name, record in found.items() if record.get(what) != content]
        _refuse(others, f"not of the {what} with which the study goes on", reports)
    used = {name: record["protocol"]["features"]["distance"] for name, record in found.items() if "protocol" in record}
    others = [name for name, its in used.items() if its != distance]
    _refuse(others, f"not measured by {distance}", reports)


def trials(model: GeneratorConfig, scale: Scale, reports: Path, further: int = FURTHER) -> list[Run]:
    """The runs that choose a variant's learning rate, on the first data set; none where there is no choice.

    While the best of three rates or more is the smallest or the largest, the next one beyond it is tried too.

    Args:
        further: most rates beyond those of the scale.
    """
    if len(scale.rates) == 1:
        return []
    plain = Run(scale=scale, data=scale.data[0], model=model, seed=0, rate=0.0, marks=(scale.steps,), sampled=False)
    found = [replace(plain, rate=rate) for rate in scale.rates]
    for _ in range(further if len(found) > 2 else 0):
        if not all(path_of(run, reports).exists() for run in found):
            break
        best = _best(found, reports).rate
        if best == found[0].rate:
            found.insert(0, replace(plain, rate=best * best / found[1].rate))
        elif best == found[-1].rate:
            found.append(replace(plain, rate=best * best / found[-2].rate))
    return found


def chosen_rate(model: GeneratorConfig, scale: Scale, reports: Path) -> float:
    """The learning rate with the smallest validation loss."""
    found = trials(model, scale, reports)
    return _best(found, reports).rate if found else scale.rates[0]


def _best(runs: Sequence[Run], reports: Path) -> Run:
    """The one with the smallest loss; the first one if all diverged."""
    losses = [read(run, reports)["marks"][0][LOSS] for run in runs]
    return runs[losses.index(min(filter(math.isfinite, losses), default=losses[0]))]


def marks(study: Study, model: GeneratorConfig, scale: Scale, reports: Path) -> dict[str, int]:
    """Optimizer steps after which a variant is measured: as many as M-VAR's, and as fit into its minutes if known."""
    steps = (scale.long if study.long else 0) or scale.steps
    found = {STEPS: steps}
    if scale.equal_minutes and not study.losses_only and (ratio := timing.read(model, scale, reports).step) is not None:
        unit = max(steps // UNITS, 1)
        found[MINUTES] = max(round(steps / ratio / unit), 1) * unit
    return found


def runs(
    study: Study, model: GeneratorConfig, scale: Scale, data: DataSet, reports: Path, seeds: int | None = None
) -> list[Run]:
    """The runs of a study's variant on a data set, one for each seed."""
    rate, at = chosen_rate(model, scale, reports), tuple(sorted({*marks(study, model, scale, reports).values()}))
    plain = Run(scale=scale, data=data, model=model, seed=0, rate=rate, marks=at, sampled=not study.losses_only)
    return [replace(plain, seed=seed) for seed in range(study.seeds_of(data, seeds))]


class Spread(NamedTuple):
    """A measure over the seeds."""

    mean: float
    deviation: float  # standard, between seeds; 0 for a single one
    values: tuple[float, ...] = ()  # by seed


class Row(NamedTuple):
    """What a variant reached on a data set, at equal steps or at equal minutes; the last ones are of samples."""

    variant: str
    data: str
    at: str
    steps: int
    rate: float  # peak learning rate
    seeds: int
    measures: Mapping[str, Spread]
    distance: str = ""  # its name
    interval: tuple[float, ...] = ()  # ends of the distance's 90 % interval of a run, mean over the seeds
    floor: Mapping[str, Any] | None = None  # the same measures of held-out images
    restored: Mapping[str, Any] | None = None  # and of what the tokenizer makes of these
    error: float = 0.0  # of equal minutes, as a share of its steps


def table(study: Study, scale: Scale, data: DataSet, reports: Path, seeds: int | None = None) -> list[Row]:
    """Every row of a study on a data set, from the records of its runs.

    Raises:
        Missing: a run has no record yet.
        ValueError: records are of different tokenizers or images, or were measured by different protocols.
    """
    rows = []
    used: dict[str, Mapping[str, Any]] = {}
    for name, model in study.variants(scale.model, scale).items():
        own = runs(study, model, scale, data, reports, seeds)
        found = [read(run, reports) for run in own]
        used |= {path_of(run, reports).name: record for run, record in zip(own, found, strict=True)}
        if data == scale.data[0]:  # whose trials choose the rates for all data sets
            used |= {path_of(run, reports).name: read(run, reports) for run in trials(model, scale, reports)}
        ends = marks(study, model, scale, reports)
        for at, steps in ends.items():
            taken = [next(m for m in record["marks"] if m["steps"] == steps) for record in found]
            row = Row(
                name, data.name, at, steps, own[0].peak_rate, len(own), {LOSS: spread([mark[LOSS] for mark in taken])}
            )
            if (
                at == MINUTES
                and model != scale.model
                and (ratio := timing.read(model, scale, reports).step) is not None
            ):
                row = row._replace(error=abs(ends[STEPS] / ratio / steps - 1) + timing.ERROR)
            rows.append(row if study.losses_only else _with_samples(row, taken, found[0]))
    _check_alike(used, reports)
    return rows


def _with_samples(row: Row, taken: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> Row:
    measures = {key: spread([mark[key] for mark in taken]) for key in OF_SAMPLES}
    return row._replace(
        measures={**row.measures, **measures},
        distance=record["protocol"]["features"]["distance"],
        interval=tuple(mean(mark["distance_interval"][end] for mark in taken) for end in (0, 1)),
        floor=record["floor"],
        restored=record["restored"],
    )


def _check_alike(used: Mapping[str, Mapping[str, Any]], reports: Path) -> None:
    """Refuse records, by file, that differ in what they were made of or how they were measured."""
    measured = "measured in other features, or with other images or numbers of samples"
    for what, said in {"tokenizer": "of another tokenizer", "images": "of other images", "protocol": measured}.items():
        values = {name: record[what] for name, record in used.items() if what in record}
        others = [name for name, value in values.items() if value != next(iter(values.values()))]
        _refuse(others, f"{said} than {next(iter(values), None)}", reports)


def _refuse(names: Sequence[str], said: str, reports: Path) -> None:
    if names:
        fix = "delete these and run the study again, or give other reports"
        raise ValueError(f"reports = {str(reports)!r}: {some(names)}: {said}; {fix}")


def spread(values: list[float]) -> Spread:
    """Mean and standard deviation of some numbers, which a run that diverged makes nan."""
    import numpy as np

    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, tuple(values))
