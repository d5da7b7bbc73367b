"""The records of runs on disk, and which runs a study needs: learning rates and marks follow from records.

`mvar study run` and `mvar study report` derive the same runs from the same files, so that a report is made of exactly
the runs that its study asks for, and of no others.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from mvar.generator.config import GeneratorConfig
from mvar.settings import raise_problems
from mvar.studies import page
from mvar.studies.comparing import timing
from mvar.studies.comparing.plan import DataSet, Missing, Run, Scale, Study, digest

STEPS, MINUTES = "equal steps", "equal minutes"
UNITS = 40  # into which M-VAR's steps are divided to count minutes: finer than times can be measured
MEASURES = ("bits_per_token", "distance", "accuracy", "precision", "recall")


def path_of(run: Run, reports: Path) -> Path:
    """The file of a run's record."""
    return reports / f"{run.name}.json"


def read(run: Run, reports: Path) -> dict[str, Any]:
    """A run's record.

    Raises:
        Missing: there is none.
        ValueError: it cannot be read, or is that of another configuration.
    """
    path = path_of(run, reports)
    if not path.exists():
        raise Missing(path)
    record = page.read_json(path, "reports")
    if "config" not in record or digest(record["config"]) != digest(run.config):
        raise ValueError(f"reports = {str(path)!r}: is not of the configuration in its name; delete it and run again")
    return record


def trials(model: GeneratorConfig, scale: Scale) -> list[Run]:
    """The short runs that choose a variant's learning rate, on the first data set; none where there is no choice."""
    if len(scale.rates) == 1:
        return []
    data, marks = scale.data[0], (scale.trial_steps,)
    return [
        Run(scale=scale, data=data, model=model, seed=0, rate=rate, marks=marks, sampled=False) for rate in scale.rates
    ]


def chosen_rate(model: GeneratorConfig, scale: Scale, reports: Path) -> float:
    """The learning rate with the smallest validation loss."""
    losses = {run.rate: read(run, reports)["marks"][0]["bits_per_token"] for run in trials(model, scale)}
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    return min(finite, key=finite.__getitem__) if finite else scale.rates[0]


def marks(study: Study, model: GeneratorConfig, scale: Scale, reports: Path) -> dict[str, int]:
    """Optimizer steps after which a variant is measured: as many as M-VAR's, and as fit into its minutes."""
    steps = scale.longer.get(study.name, scale.steps)
    found = {STEPS: steps}
    if scale.equal_minutes:
        unit = max(steps // UNITS, 1)
        found[MINUTES] = max(round(steps / timing.read(model, scale, reports).step / unit), 1) * unit
    return found


def runs(
    study: Study, model: GeneratorConfig, scale: Scale, data: DataSet, reports: Path, seeds: int | None = None
) -> list[Run]:
    """The runs of a study's variant on a data set, one for each seed."""
    rate, at = chosen_rate(model, scale, reports), tuple(sorted({*marks(study, model, scale, reports).values()}))
    seeds = study.seeds_of(data, seeds)
    return [Run(scale=scale, data=data, model=model, seed=seed, rate=rate, marks=at) for seed in range(seeds)]


class Spread(NamedTuple):
    """A measure over the seeds."""

    mean: float
    deviation: float  # between seeds; 0 for a single one


class Row(NamedTuple):
    """What a variant reached on a data set, at equal steps or at equal minutes."""

    variant: str
    data: str
    at: str
    steps: int
    rate: float  # peak learning rate
    seeds: int
    measures: Mapping[str, Spread]
    interval: tuple[float, float]  # 90 % of the distance, for its samples: the mean over seeds
    floor: Mapping[str, Any]  # the same measures of held-out images
    restored: Mapping[str, Any]  # and of what the tokenizer makes of these


def table(study: Study, scale: Scale, data: DataSet, reports: Path, seeds: int | None = None) -> list[Row]:
    """Every row of a study on a data set, from the records of its runs.

    Raises:
        Missing: a run has no record yet.
        ValueError: records are of different tokenizers, or were measured by different protocols.
    """
    rows = []
    protocols: dict[str, list[str]] = {}
    tokenizers: dict[str, list[str]] = {}
    for name, model in study.variants(scale.model, scale).items():
        own = runs(study, model, scale, data, reports, seeds)
        found = [read(run, reports) for run in own]
        shorter = trials(model, scale) if data == scale.data[0] else []
        for run, record in zip([*own, *shorter], [*found, *(read(run, reports) for run in shorter)], strict=True):
            tokenizers.setdefault(record["tokenizer"], []).append(path_of(run, reports).name)
        for run, record in zip(own, found, strict=True):
            protocols.setdefault(digest(record["protocol"]), []).append(path_of(run, reports).name)
        for at, steps in marks(study, model, scale, reports).items():
            taken = [next(m for m in record["marks"] if m["steps"] == steps) for record in found]
            measures = {key: spread([mark[key] for mark in taken]) for key in MEASURES}
            low, high = (mean(mark["distance_interval"][i] for mark in taken) for i in (0, 1))
            rate = own[0].rate * scale.training["batch_size"] / 256
            real, restored = found[0]["floor"], found[0]["restored"]
            rows.append(Row(name, data.name, at, steps, rate, len(own), measures, (low, high), real, restored))
    for what, names in {"tokenizer": tokenizers, "protocol": protocols}.items():
        first, *others = names.values()
        raise_problems(
            f"reports = {str(reports / name)!r}: is of another {what} than {first[0]}; "
            "delete the records of one of the two and run the study again"
            for name, *_ in others
        )
    return rows


def spread(values: list[float]) -> Spread:
    """Mean and standard deviation of some numbers."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else 0.0)


def verdict(rows: list[Row], baseline: str) -> list[str]:
    """Which variants have a smaller loss than the baseline, and which a larger one, on every data set.

    A difference counts if it is larger than the deviations between seeds of both together.
    """
    sentences = []
    for at in dict.fromkeys(row.at for row in rows):
        signs: dict[str, list[int]] = {}
        for data in dict.fromkeys(row.data for row in rows):
            loss = {row.variant: row.measures["bits_per_token"] for row in rows if (row.at, row.data) == (at, data)}
            for variant in loss.keys() - {baseline}:
                signs.setdefault(variant, []).append(_sign(loss[variant], loss[baseline]))
        order = [row.variant for row in rows if row.variant in signs]
        named = {
            "smaller": [name for name in dict.fromkeys(order) if {*signs[name]} == {-1}],
            "larger": [name for name in dict.fromkeys(order) if {*signs[name]} == {1}],
        }
        named["not clearly different, or not alike on all data"] = [
            name for name in dict.fromkeys(order) if all(name not in found for found in named.values())
        ]
        parts = "; ".join(f"{what}: {', '.join(names) if names else 'none'}" for what, names in named.items())
        sentences.append(f"At {at}, loss compared with {baseline}'s: {parts}.")
    return sentences


def _sign(ours: Spread, baseline: Spread) -> int:
    apart = ours.mean - baseline.mean
    return 0 if abs(apart) <= ours.deviation + baseline.deviation else 1 if apart > 0 else -1
