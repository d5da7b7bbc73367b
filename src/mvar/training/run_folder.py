"""What a training run leaves on disk: metrics, TensorBoard events, previews and the checkpoint it resumes from.

checkpoint.pt            weights, optimizer and counters after the last saved step
metrics.jsonl            one line for each logged or validated step
run.json                 the settings
data.json                how many training images, and their classes
events.out.tfevents.*    the same for TensorBoard
previews/*.png           sheets of images
config.json, ...         the model as a bundle
"""

import json
import os
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from mvar import __version__
from mvar.checkpoint.bundle import is_bundle
from mvar.data.source import PixelSource, Source
from mvar.files import atomic_write, writable_folder, write_text
from mvar.training.config import RunConfig
from mvar.validation import raise_problems

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CHECKPOINT, METRICS, SETTINGS, DATA, PREVIEWS = "checkpoint.pt", "metrics.jsonl", "run.json", "data.json", "previews"
# What may differ between a run and its continuation; ADJUSTABLE with a warning: more steps, which the schedules of
# learning rate and weight decay then stretch over, and the remedies for a loss that is not finite.
FREE = {"out", "data", "tokenizer", "device", "resume", "log_every", "validate_every", "checkpoint_every", "val_images"}
ADJUSTABLE = {"steps", "base_lr", "grad_clip"}


class RunFolder:
    """The files of one run. Use as a context manager: closing flushes what is buffered."""

    def __init__(self, config: RunConfig) -> None:
        """Open the folder for a new run, or to go on with the one in it.

        Raises:
            ValueError: the folder cannot be written; it holds a run or a model and `resume` is off; or `resume` is
                on and it holds no run, a damaged one, or one with other settings.
        """
        self.path = writable_folder(config.out, "out")
        self._done = 0  # steps in the checkpoint that the run goes on from
        self._events: SummaryWriter | None = None
        found = (self.path / CHECKPOINT).is_file()
        if found and not config.resume:
            raise ValueError(f"out = {config.out!r}: holds a run; give --resume to go on with it, or a new folder")
        if not found and is_bundle(self.path):
            raise ValueError(f"out = {config.out!r}: holds a model, which this run would replace; give a new folder")
        if not found and config.resume:
            raise ValueError(f"out = {config.out!r}: holds no checkpoint to resume; leave --resume out to start")
        self._settings = json.loads(json.dumps(asdict(config)))
        self._checkpoint = self._read_checkpoint() if found else {}
        if found and config.steps < self._done:
            done = f"the run in {str(self.path)!r} has done {self._done}"
            raise ValueError(f"steps = {config.steps}: {done}; give at least as many")
        if found:
            self._check_same(self._settings)

    def _check_same(self, settings: Mapping[str, Any]) -> None:
        before = _read_json(self.path / SETTINGS)
        problems = []
        for name in sorted(settings.keys() - FREE):
            if before.get(name) == settings[name]:
                continue
            text = f"{name} = {settings[name]!r}: the run in {str(self.path)!r} has {before.get(name)!r}"
            if name in ADJUSTABLE:
                warnings.warn(f"{text}; it goes on with the new value", stacklevel=3)
            else:
                problems.append(f"{text}; resume with its settings, or start a new run")
        raise_problems(problems)

    def begin(self, images: PixelSource | Source, held_out: PixelSource | Source, tokenizer: str | None = None) -> None:
        """Say and note what the run trains on, and its settings; when it is resumed, see that this is still so.

        Args:
            images: the training images.
            held_out: the validation images.
            tokenizer: fingerprint of the tokenizer whose token maps are trained on.

        Raises:
            ValueError: the classes or the tokenizer have changed.
        """
        classes = f"{len(images.classes)} classes" if images.classes else "no classes"
        print(f"{len(images)} training images of {classes}, {len(held_out)} for validation", file=sys.stderr)
        path = self.path / DATA
        now = {"images": len(images), "classes": images.classes, "tokenizer": tokenizer}
        before = _read_json(path) if (self.path / CHECKPOINT).is_file() and path.is_file() else now
        if before.get("classes") != now["classes"]:
            raise ValueError(
                f"data: has classes {now['classes']}, the run began with {before.get('classes')}; resume with its data"
            )
        if before.get("tokenizer") != tokenizer:
            raise ValueError("tokenizer: has other weights than the one the run began with; resume with that one")
        if before.get("images") != now["images"]:
            text = f"data: has {now['images']} training images, the run began with {before.get('images')}"
            warnings.warn(f"{text}; from here on their order differs from that of an unbroken run", stacklevel=2)
        if not (self.path / CHECKPOINT).is_file():
            (self.path / METRICS).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
        _write_json(path, now)
        _write_json(self.path / SETTINGS, self._settings)
        (self.path / PREVIEWS).mkdir(exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.path.rmdir()  # of a run that was refused before it wrote anything
        if self._events is not None:
            self._events.close()

    def log(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Append one line to metrics.jsonl and the same to TensorBoard; lists hold one number a scale."""
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            # Hides what was logged after the checkpoint.
            self._events = SummaryWriter(str(self.path), purge_step=self._done + 1)
        for name, value in values.items():
            if isinstance(value, list):
                for k, number in enumerate(value):
                    self._events.add_scalar(f"{name}/scale_{k}", number, step)
            else:
                self._events.add_scalar(name, value, step)

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the checkpoint in place of the one before."""
        atomic_write(self.path / CHECKPOINT, partial(_save_and_sync, dict(state)))

    def _read_checkpoint(self) -> dict[str, Any]:
        path = self.path / CHECKPOINT
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            self._done = int(state["step"])
        except Exception as error:  # a damaged archive raises errors of many kinds
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{path}: cannot be read ({reason}); the file is damaged, start a new run") from error
        return state

    def load(self) -> dict[str, Any]:
        """Hand over the checkpoint, and cut from metrics.jsonl what was logged after it."""
        state, self._checkpoint = self._checkpoint, {}
        metrics = self.path / METRICS
        if metrics.is_file():
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # a killed run may leave half a line
            write_text(metrics, "".join(line for line in whole if json.loads(line)["step"] <= self._done))
        return state


def provenance(config: RunConfig) -> dict[str, Any]:
    """Where a trained model comes from, for its bundle."""
    return {
        "trained_with": f"mvar {__version__}, torch {torch.__version__}",
        "data": Path(config.data).resolve().name,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); the file is damaged, start a new run") from error


def _save_and_sync(state: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
