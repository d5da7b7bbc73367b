"""What tests of training runs share: reading what a run left, and killing it at a step."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mvar.training.run import checkpoints

WORKER = Path(__file__).with_name("worker.py")
WORK = f"import runpy; runpy.run_path({str(WORKER)!r}, run_name='__main__')"


class Killed(Exception):
    pass


def metrics(out) -> list[dict[str, Any]]:
    """The records of a run, without its rate."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def checkpoint(out) -> dict[str, Any]:
    """The last checkpoint: its step, notes and tensors by name."""
    found = checkpoints.latest(Path(out))
    tensors = {}
    for path in sorted(found.path.glob("*.safetensors")):
        tensors |= {name: value.clone() for name, value in load_file(path).items()}  # not a view of the file
    return {"step": found.step, "notes": found.notes, "tensors": tensors}


def same_bits(a, b) -> bool:
    """Whether two structures of tensors are equal."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_bits, a, b))
    return a == b


def poison(monkeypatch, task, step, how) -> None:
    """Change the loss of one step (from 0)."""
    original = task.loss

    def loss(self, i, part):
        value, terms = original(self, i, part)
        return (how(value) if i == step else value), terms

    monkeypatch.setattr(task, "loss", loss)


def train_until(step, train, task, config) -> None:
    """Train a run that is killed in a step (from 0)."""

    def kill(_):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        poison(patch, task, step, kill)
        with pytest.raises(Killed):
            train(config)
