"""What a training step and an image take relative to M-VAR: measured once for each generator, between M-VAR's own.

Minutes must mean the same in all runs, whatever else a machine does meanwhile. So a run's minutes are counted in
optimizer steps, by ratios of times that take turns with M-VAR's. They are those of one process on a CPU; where training
runs on a GPU or on several processes, nothing is timed.
"""

import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mvar.bench.cases import Case as Drawing
from mvar.bench.measuring import quickest, take_turns
from mvar.bench.parts import Ledger
from mvar.bench.training import Case, Worker, count
from mvar.generator.config import GeneratorConfig
from mvar.machine import machine
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import Sampler
from mvar.studies import page
from mvar.studies.comparing.plan import Scale, differing, digest, read_named
from mvar.text import counted
from mvar.tokenizer.network import Tokenizer
from mvar.training.generator.task import decided_by

KINDS = ("step", "image")
TIMED = (*KINDS, "step_seconds", "image_seconds")
ROUNDS = 9
ERROR = 0.03  # of a ratio, on a quiet machine
IMAGES = 16  # drawn at once


class Times(NamedTuple):
    """A generator's size, and what it takes relative to M-VAR of the same scale; None where that was not timed."""

    step: float | None  # of training
    image: float | None
    step_seconds: float | None
    parameters: int
    step_flop: int  # forward and backward, of one image


def path_of(model: GeneratorConfig, scale: Scale, reports: Path) -> Path:
    """The file with a generator's times."""
    return reports / f"time-{digest(_config(model, scale))}.json"


def read(model: GeneratorConfig, scale: Scale, reports: Path) -> Times:
    """The times of a generator that `measure` has measured.

    Raises:
        Missing: there are none.
        ValueError: their file cannot be read, or is that of another configuration.
    """
    path = path_of(model, scale, reports)
    record = read_named(path, _config(model, scale))
    if not record.keys() >= {*Times._fields}:
        raise ValueError(f"reports = {str(path)!r}: is not a whole record; delete it and run the study again")
    return Times(**{name: record[name] for name in Times._fields})


def is_complete(model: GeneratorConfig, scale: Scale, reports: Path, timed: bool) -> bool:
    """Whether a generator has times; or sizes alone, where training is not timed.

    Raises:
        ValueError: it has times where there should be none, or none where there should be: runs of both would be mixed.
    """
    path = path_of(model, scale, reports)
    if not path.exists():
        return False
    if (read(model, scale, reports).step is not None) != timed:
        has, fix = ("no times", "") if timed else ("times of a CPU", "give --device cpu, or ")
        raise ValueError(
            f"reports = {str(reports)!r}: {path.name} has {has}, unlike runs here; {fix}give other reports"
        )
    return True


def measure(
    models: Iterable[GeneratorConfig], scale: Scale, tokenizer: Tokenizer, reports: Path, timed: bool = True
) -> None:
    """Count what is not complete; if `timed`, time a training step and a batch of images with guidance on the CPU."""
    missing = {
        path_of(model, scale, reports): model for model in models if not is_complete(model, scale, reports, timed)
    }
    times = _timed(missing, scale, tokenizer) if timed and missing else {}
    for path, model in missing.items():
        network = count(_case(model, scale, tokenizer).config, 1)
        record: dict[str, Any] = {
            "config": _config(model, scale),
            **times.get(path, dict.fromkeys(TIMED)),
            "parameters": network.parameters,
            "step_flop": network.flop,
            "machine": machine(),
        }
        page.write_json(path, record)


def _timed(missing: Mapping[Path, GeneratorConfig], scale: Scale, tokenizer: Tokenizer) -> dict[Path, dict[str, float]]:
    """The `TIMED` values of each file."""
    cases: dict[Hashable, Callable[[], float]] = {}
    reference = _cases(scale.model, scale, tokenizer)
    for path, model in missing.items():
        own = _cases(model, scale, tokenizer)
        for kind in KINDS:  # M-VAR before and after it, so that what changes slowly changes no ratio
            cases |= {(path, kind, 0): reference[kind], (path, kind, 1): own[kind]}
            cases |= {(path, kind, 2): own[kind], (path, kind, 3): reference[kind]}
    print(f"timing {counted(len(missing), 'generator')} in turn with M-VAR:", file=sys.stderr, flush=True)
    seconds = take_turns(cases, ROUNDS)
    times = {}
    for path, model in missing.items():
        own_seconds = {kind: [*seconds[path, kind, 1], *seconds[path, kind, 2]] for kind in KINDS}
        ratios = {kind: _ratio([seconds[path, kind, i] for i in range(4)]) for kind in KINDS}
        if model == scale.model:
            _check(ratios)
            ratios = dict.fromkeys(KINDS, 1.0)
        times[path] = {
            **ratios,
            "step_seconds": median(own_seconds["step"]),
            "image_seconds": median(own_seconds["image"]) / IMAGES,
        }
    return times


def _check(ratios: Mapping[str, float]) -> None:
    """Say what M-VAR takes relative to itself, which would be 1 if times had no error."""
    found = "{step:.2f} times as long for a step, {image:.2f} times for images".format(**ratios)
    print(f"timed against itself, M-VAR takes {found} (exact is 1)", file=sys.stderr, flush=True)
    if max(abs(ratio - 1) for ratio in ratios.values()) > 2 * ERROR:
        warnings.warn(
            f"the machine was busy: times are wrong by more than {2 * ERROR:.0%}, and so are equal minutes; stop the "
            "study and other programs, delete the time-*.json files of its results, and run it again",
            stacklevel=2,
        )


def _ratio(four: list[list[float]]) -> float:
    """Of the middle two to the outer two: the median over rounds."""
    return median((its + again) / (ours + after) for ours, its, again, after in zip(*four, strict=True))


def _cases(model: GeneratorConfig, scale: Scale, tokenizer: Tokenizer) -> dict[str, Callable[[], float]]:
    """A training step, and a batch of images with guidance; each returns its seconds."""
    worker = Worker(_case(model, scale, tokenizer))
    drawing = Drawing(Sampler(tokenizer, worker.generator, seed=0, settings=SamplingSettings()))
    return {"step": lambda: _trained(worker), "image": lambda: drawing.draw(IMAGES, Ledger())}


def _trained(worker: Worker) -> float:
    worker.generator.train()
    seconds = worker.step().seconds
    worker.generator.eval()
    return seconds


def _case(model: GeneratorConfig, scale: Scale, tokenizer: Tokenizer) -> Case:
    config = replace(model, **decided_by(tokenizer.config, 10))
    return Case(config=config, batch_size=scale.training["batch_size"], dtype=scale.training.get("dtype") or quickest())


def _config(model: GeneratorConfig, scale: Scale) -> dict[str, Any]:
    sides = list(scale.data[0].sides)
    return {"scale": scale.name, "model": differing(model), "sides": sides, "batch": scale.training["batch_size"]}
