"""What a training step and an image take relative to M-VAR: measured once for each generator, in turns with M-VAR.

Minutes must mean the same in all runs, whatever else a machine does meanwhile. So a run's minutes are counted in
optimizer steps, by ratios of times that were measured when the machine was quiet.
"""

from collections.abc import Callable, Hashable, Iterable
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
from mvar.studies.comparing.plan import Missing, Scale, differing, digest
from mvar.tokenizer.network import Tokenizer
from mvar.training.generator.task import decided_by

ROUNDS = 7
IMAGES = 16  # drawn at once


class Times(NamedTuple):
    """What a generator takes, relative to M-VAR of the same scale, and its size."""

    step: float  # of training
    image: float
    parameters: int
    step_flop: int  # forward and backward, of one image
    step_seconds: float


def path_of(model: GeneratorConfig, scale: Scale, reports: Path) -> Path:
    """The file with a generator's times."""
    return reports / f"time-{digest(_config(model, scale))}.json"


def read(model: GeneratorConfig, scale: Scale, reports: Path) -> Times:
    """The times of a generator that `measure` has measured."""
    if not (path := path_of(model, scale, reports)).exists():
        raise Missing(path)
    record = page.read_json(path, "reports")
    return Times(**{name: record[name] for name in Times._fields})


def measure(models: Iterable[GeneratorConfig], scale: Scale, tokenizer: Tokenizer, reports: Path) -> None:
    """Measure what has no file yet, each in turns with M-VAR: a training step, and a batch of images with guidance."""
    missing = {path: model for model in models if not (path := path_of(model, scale, reports)).exists()}
    if not missing:
        return
    cases: dict[Hashable, Callable[[], float]] = {}
    in_turn: list[tuple[Hashable, GeneratorConfig]] = [("M-VAR", scale.model), *missing.items()]
    for name, model in in_turn:
        worker = Worker(_case(model, scale, tokenizer))
        settings = SamplingSettings()
        drawing = Drawing(Sampler(tokenizer, worker.generator, seed=0, settings=settings))
        cases[name, "step"] = lambda worker=worker: _trained(worker)  # type: ignore[misc]
        cases[name, "image"] = lambda drawing=drawing: drawing.draw(IMAGES, Ledger())  # type: ignore[misc]
    seconds = take_turns(cases, ROUNDS)
    for path, model in missing.items():
        ratios = {
            kind: median(its / ours for its, ours in zip(seconds[path, kind], seconds["M-VAR", kind], strict=True))
            for kind in ("step", "image")
        }
        network = count(_case(model, scale, tokenizer).config, 1)
        record: dict[str, Any] = {
            "config": _config(model, scale),
            **ratios,
            "step_seconds": median(seconds[path, "step"]),
            "image_seconds": median(seconds[path, "image"]) / IMAGES,
            "parameters": network.parameters,
            "step_flop": network.flop,
            "machine": machine(),
        }
        page.write_json(path, record)


def _trained(worker: Worker) -> float:
    worker.generator.train()
    seconds = worker.step().seconds
    worker.generator.eval()
    return seconds


def _case(model: GeneratorConfig, scale: Scale, tokenizer: Tokenizer) -> Case:
    config = replace(model, **decided_by(tokenizer.config, 10))
    return Case(config=config, batch_size=scale.training["batch_size"], dtype=quickest())


def _config(model: GeneratorConfig, scale: Scale) -> dict[str, Any]:
    sides = list(scale.data[0].sides)
    return {"scale": scale.name, "model": differing(model), "sides": sides, "batch": scale.training["batch_size"]}
