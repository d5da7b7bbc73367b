"""The folder of a training run, which documents itself and resumes from its checkpoints.

checkpoints/             see `mvar.training.run.checkpoints`
metrics.jsonl            one line for each logged or validated step
curves.png               the same as a picture
run.json                 the settings; as "decided" those of the model that follow from its data and tokenizer
data.json                number of training images, their classes, and hashes of both sets
environment.json         for each start: command, versions, machine, git revision
tokens.npy               tokens of a generator's training images, as far as they were encoded
events.out.tfevents.*    the metrics for TensorBoard
previews/*.png           sheets of images
config.json, ...         the model as a bundle
"""

import json
import math
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import MISSING, asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from mvar import __version__
from mvar.checkpoint.bundle import is_bundle
from mvar.data.shards.stream import Stream
from mvar.files import writable_folder, write_text
from mvar.job import locked
from mvar.machine import has_extra, machine
from mvar.settings import raise_problems
from mvar.text import counted
from mvar.training.config import RunConfig
from mvar.training.parallel import Ranks
from mvar.training.run import checkpoints
from mvar.training.run.checkpoints import Found
from mvar.training.task import Metrics, TrainingSet, ValidationSet

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS, SETTINGS, DATA, PREVIEWS = "metrics.jsonl", "run.json", "data.json", "previews"
ENVIRONMENT, CURVES, LOCK = "environment.json", "curves.png", ".lock"
# What may differ between a run and its continuation. ADJUSTABLE gives a warning: more steps or minutes, over which the
# schedules of learning rate and weight decay then stretch, and the remedies for a loss that is not finite.
FREE = {
    "out", "data", "tokenizer", "init_from", "device", "resume", "accumulate", "workers", "parallel", "rank_timeout",
    "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "val_images", "val_data", "compile",
    "activation_checkpointing",
}  # fmt: skip
ADJUSTABLE = {"steps", "minutes", "base_lr", "grad_clip"}
PLOT_EVERY = 300.0  # seconds between drawings of the curves, which take a second or two


class RunFolder:
    """The files of one run, which the main rank alone writes; a context that closes them.

    `begin` makes a new folder, once everything that could refuse the run has been checked. `checkpoint` is what the run
    resumes from, None for a new one.
    """

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        """Raises ValueError if the folder cannot be written, holds a run or a model that would be overwritten, or
        nothing that these settings could resume.
        """
        self.path, self._ranks, self._config = Path(config.out), ranks, config
        self._settings = json.loads(json.dumps(asdict(config)))
        self._unit = "steps" if config.minutes is None else "minutes"  # of the run's length
        self._held = ExitStack()  # the lock, from `begin` on
        self._plots = self._tensorboard = False  # set by `begin`
        self._events: SummaryWriter | None = None
        self._plotted = 0.0
        self.checkpoint: Found | None = ranks.on_main(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()
        if self._events is not None:
            self._events.close()

    # --- before the run ---

    def _open(self) -> Found | None:
        out = self._config.out
        writable_folder(out, "out")
        if not self._config.resume:
            if checkpoints.exist(self.path):
                raise ValueError(f"out = {out!r}: holds a run; give --resume to go on with it, or a new folder")
            if is_bundle(self.path):
                raise ValueError(f"out = {out!r}: holds a model, which this run would replace; give a new folder")
            return None
        if not checkpoints.exist(self.path):
            raise ValueError(f"out = {out!r}: holds no checkpoint to resume; leave --resume out to start")
        found, before = checkpoints.latest(self.path), _read_json(self.path / SETTINGS)
        self._check_length(found, before)
        self._check_settings(before)
        return found

    def _check_length(self, found: Found, before: Mapping[str, Any]) -> None:
        """Refuse a length that is over already, and steps in place of minutes."""
        name, other = (self._unit, "minutes" if self._unit == "steps" else "steps")
        wanted, run = getattr(self._config, name), f"the run in {str(self.path)!r}"
        if before.get(name) is None:
            raise ValueError(
                f"{name} = {_shown(wanted)}: {run} was begun with {other} = {_shown(before[other])}; "
                f"resume with {other}, or start a new run"
            )
        done: float = found.step
        if name == "minutes":  # the last checkpoint of a finished run may come after its end
            done = min(math.ceil(found.notes["course"]["spent"] / 6) / 10, before["minutes"])
        if wanted < done:
            raise ValueError(f"{name} = {_shown(wanted)}: {run} has done {_shown(done)}; give at least as many")

    def _check_settings(self, before: Mapping[str, Any]) -> None:
        """Refuse settings that a resumed run must keep."""
        before = _with_defaults(before, self._config)
        changed = {
            name: f"{name} = {_shown(self._settings[name])}: the run in {str(self.path)!r} has {_shown(before[name])}"
            for name in sorted(self._settings.keys() - FREE)
            if before[name] != self._settings[name]
        }
        fix = "resume with its settings, or start a new run"
        raise_problems(f"{text}; {fix}" for name, text in changed.items() if name not in ADJUSTABLE)
        for text in changed.values():
            warnings.warn(f"{text}; it goes on with the new value", stacklevel=3)

    def check(self, images: TrainingSet, held_out: ValidationSet, tokenizer: str | None = None) -> float:
        """Print what the run trains on; if it resumes, check that classes and tokenizer are unchanged.

        Returns the number of steps or minutes that the run was begun with.
        """
        self._data = self._ranks.on_main(lambda: self._checked(images, held_out, tokenizer))
        return self._data[self._unit]

    def _checked(self, images: TrainingSet, held_out: ValidationSet, tokenizer: str | None) -> dict[str, Any]:
        """The content of data.json."""
        if isinstance(images, Stream):
            n, what = None, f"a stream of {counted(len(images.urls), 'shard')}"
        else:
            n, what = len(images), counted(len(images), "training image")
        classes = counted(len(images.classes), "class", "classes") if images.classes else "no classes"
        print(f"{what} of {classes}, {counted(len(held_out), 'image')} for validation", file=sys.stderr)
        now: dict[str, Any] = {"images": n, "classes": images.classes, "tokenizer": tokenizer}
        now |= {"content": images.fingerprint(), "val_content": held_out.fingerprint()}
        before = now if self.checkpoint is None else _read_json(self.path / DATA)
        if before["classes"] != now["classes"]:
            raise ValueError(
                f"data: has classes {now['classes']}, the run began with {before['classes']}; resume with its data"
            )
        if before["tokenizer"] != tokenizer:
            raise ValueError("tokenizer: has other weights than the one the run began with; resume with that one")
        for name, text in (
            ("content", "training images or labels than the run had; the result will not be that of an unbroken run"),
            ("val_content", "validation images than the run had; losses before and after cannot be compared"),
        ):
            if _differ(before.get(name), now[name]):
                warnings.warn(f"data: has other {text}", stacklevel=4)
        return now | {self._unit: before.get(self._unit, self._settings[self._unit])}

    def begin(self, decided: Mapping[str, Any] | None = None) -> None:
        """Write the run's settings, those of the model that were `decided` by the data, and what it trains on.

        Raises ValueError if another process trains in the folder.
        """
        self._ranks.on_main(lambda: self._begin(decided))

    def _begin(self, decided: Mapping[str, Any] | None) -> None:
        self._plots = has_extra("matplotlib", "plots", CURVES)
        self._tensorboard = has_extra("tensorboard", "tensorboard", "TensorBoard events")
        (self.path / PREVIEWS).mkdir(parents=True, exist_ok=True)
        refusal = f"out = {self._config.out!r}: another process trains in this folder; wait for it, or stop it"
        self._held.enter_context(locked(self.path / LOCK, refusal))
        done = 0 if self.checkpoint is None else self.checkpoint.step
        # Without what was logged after the checkpoint, or by a run that ended before its first.
        kept = [json.dumps(record) + "\n" for record in self._records() if record["step"] <= done]
        write_text(self.path / METRICS, "".join(kept))
        _write_json(self.path / DATA, self._data)
        _write_json(self.path / SETTINGS, self._settings | ({} if decided is None else {"decided": decided}))
        starts = self.path / ENVIRONMENT
        earlier = _read_json(starts)["starts"] if done and starts.is_file() else []
        _write_json(starts, {"starts": [*earlier, environment(self._ranks, done)]})

    # --- while it runs ---

    def log(self, step: int, values: Metrics) -> None:
        """Append a line to metrics.jsonl and the same to TensorBoard; lists hold one number for each scale."""
        if not self._ranks.main:
            return
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if not self._tensorboard:
            return
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            done = 0 if self.checkpoint is None else self.checkpoint.step
            self._events = SummaryWriter(str(self.path), purge_step=done + 1)  # hides what was logged after it
        for name, value in values.items():
            if isinstance(value, list):
                for k, number in enumerate(value):
                    self._events.add_scalar(f"{name}/scale_{k}", number, step)
            else:
                self._events.add_scalar(name, value, step)

    def _records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without the half line that a killed run may leave at its end."""
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def plot(self, last: bool) -> None:
        """Draw the metrics so far, every few minutes and the last time."""
        if self._ranks.main and self._plots and (last or time.time() - self._plotted > PLOT_EVERY):
            self._plotted = time.time()
            from mvar.training.run.curves import plot_curves  # matplotlib takes a second to import

            plot_curves(self._records(), self.path / CURVES)


def environment(ranks: Ranks, step: int) -> dict[str, Any]:
    """Command, versions and machine of one start of a run, which has done this number of steps."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    revision = None
    with suppress(OSError, subprocess.SubprocessError):  # no git, a slow disk, no repository
        revision = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": step,
        "command": sys.argv,
        "mvar": __version__,
        "git": revision,
        "python": platform.python_version(),
        "system": platform.platform(),
        **machine(),
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else str(ranks.device),
        "ranks": ranks.size,
        "parallel": ranks.kind,
    }


def _shown(value: Any) -> str:
    """A setting in a message: 15 minutes, not 15.0."""
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _with_defaults(before: Mapping[str, Any], config: RunConfig) -> dict[str, Any]:
    """The settings of a run; those that its version did not have yet take their defaults, which mean "as before"."""
    plain = {f.name: None if f.default is MISSING else f.default for f in fields(config)}
    model = asdict(type(config.model)())  # type: ignore[attr-defined]
    defaults = json.loads(json.dumps({**plain, "model": model}))
    return {**defaults, **before, "model": {**defaults["model"], **before.get("model", {})}}


def _differ(before: str | None, now: str) -> bool:
    """Whether two fingerprints tell of different images; those of images and of a token cache cannot be compared."""
    return before is not None and before.partition(" ")[0] == now.partition(" ")[0] and before != now


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
