"""One run of a study: its training, and what is measured at its marks."""

import json
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mvar.machine import machine
from mvar.model import load
from mvar.studies import measuring, page
from mvar.studies.comparing.data import Prepared
from mvar.studies.comparing.place import AGAIN, Place, by_itself
from mvar.studies.comparing.plan import Run
from mvar.studies.comparing.real import Real
from mvar.training.config import GeneratorTraining
from mvar.training.generator.task import train
from mvar.training.run import checkpoints
from mvar.training.run.folder import METRICS
from mvar.training.stopping import Stopped

WARM_UP = 20  # optimizer steps
MARKS = "marks.json"
CURVE = 2  # validations up to the first mark


def measured(run: Run, prepared: Prepared, folder: Path) -> list[dict[str, Any]]:
    """What was measured at the marks that a run has passed.

    Raises:
        ValueError: the folder's run was trained with another tokenizer or on other images.
    """
    path = folder / MARKS
    if not path.exists():
        return []
    found = page.read_json(path, "out")
    if found.get("contents") != prepared.contents:
        raise ValueError(f"out = {str(folder)!r}: was trained with another tokenizer or on other images; delete it")
    return list(found["marks"])


def carry_out(run: Run, prepared: Prepared, real: Real | None, folder: Path, place: Place) -> dict[str, Any]:
    """Train, measure at each mark, and return the record.

    The learning rate is constant after the warm-up and averaged weights are measured, so that a run of several marks
    is at each of them what a run of that length would be.

    Args:
        real: what samples are compared with; None for a run that is not sampled, and where another process measures.
        folder: of the training run, a bundle in the end.
    """
    marks = measured(run, prepared, folder)  # a run that was stopped between marks goes on after the last
    for mark in run.marks[len(marks) :]:
        config = _training(run, prepared, folder, mark, place)
        with warnings.catch_warnings(), nullcontext() if run.scale.spread else by_itself():
            warnings.filterwarnings("ignore", "steps = ")  # that the run is longer now
            try:
                train(config)
            except Stopped as stopped:
                raise Stopped(f"stopped with a checkpoint; {AGAIN}", stopped.code) from stopped
        if run.scale.spread and place.rank > 0:
            continue
        found = {"steps": mark, **_validated(folder, mark)}
        if real is not None:
            model = load(str(folder), place.device)
            drawn = measuring.draw(model, real.form, run.data.per_class, run.seed, model.defaults)
            found |= {**real.measure(drawn.images), "settings": asdict(model.defaults)}
        marks.append(found)
        page.write_json(folder / MARKS, {"contents": prepared.contents, "marks": marks})
    record: dict[str, Any] = {
        "config": run.config,
        **prepared.contents,
        "marks": marks,
        "curve": [[m["step"], m["val_bits_per_token"]] for m in _metrics(folder) if "val_bits_per_token" in m],
        "machine": machine(),
    }
    if real is not None:
        (settings,) = {json.dumps(mark.pop("settings")) for mark in marks}
        record |= {
            "protocol": {**real.protocol, "settings": json.loads(settings)},
            "floor": real.floor,
            "restored": real.restored,
        }
    return record


def _training(run: Run, prepared: Prepared, folder: Path, steps: int, place: Place) -> GeneratorTraining:
    first = run.marks[0]
    values: dict[str, Any] = {
        "warmup": min(WARM_UP / first, 1.0) if run.scale.training.get("lr_end") == 1.0 else 0.02,
        "validate_every": max(first // CURVE, 1),
        "checkpoint_every": min(first, 500),
        "preview_per_class": 1,
        **run.scale.training,
    }
    return GeneratorTraining(
        data=str(prepared.tokens),
        tokenizer=prepared.tokenizer,
        out=str(folder),
        model=replace(run.model, sides=list(run.data.sides)),
        steps=steps,
        base_lr=run.rate,
        seed=run.seed,
        device=place.device,
        resume=checkpoints.exist(folder),
        **values,
    )


def _validated(folder: Path, step: int) -> dict[str, Any]:
    """The validation after this step."""
    found = [m for m in _metrics(folder) if m["step"] == step and "val_bits_per_token" in m][-1]
    return {
        "bits_per_token": found["val_bits_per_token"],
        "loss_scales": found["val_loss_scales"],
        "token_accuracy": found["val_accuracy"],
    }


def _metrics(folder: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
