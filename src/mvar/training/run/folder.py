"""What a training run leaves on disk: it documents itself, and resumes from its checkpoints.

checkpoints/             see `mvar.training.run.checkpoints`
metrics.jsonl            one line for each logged or validated step
curves.png               the same as a picture
run.json                 the settings, and as "decided" those of the model that its data and tokenizer decide
data.json                how many training images, their classes, and hashes that tell them from others
environment.json         for each start: command, versions, machine, git revision
tokens.npy               tokens of a generator's training images, as far as they have come up
heartbeats/              for each rank: its last step and when that was
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import torch

from mvar import __version__
from mvar.checkpoint.bundle import is_bundle
from mvar.data.shards.stream import Stream
from mvar.data.source import PixelSource
from mvar.data.splits import is_stream
from mvar.data.tokens.cache import TokenSource
from mvar.files import writable_folder, write_text
from mvar.machine import has_extra, processor
from mvar.settings import raise_problems
from mvar.text import counted
from mvar.training.config import RunConfig
from mvar.training.parallel import Ranks
from mvar.training.run import checkpoints

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS, SETTINGS, DATA, PREVIEWS = "metrics.jsonl", "run.json", "data.json", "previews"
ENVIRONMENT, HEARTBEATS, CURVES = "environment.json", "heartbeats", "curves.png"
# What may differ between a run and its continuation; ADJUSTABLE with a warning: more steps or minutes, over which the
# schedules of learning rate and weight decay then stretch, and the remedies for a loss that is not finite.
FREE = {
    "out", "data", "tokenizer", "init_from", "device", "resume", "accumulate", "workers", "parallel", "rank_timeout",
    "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "val_images", "val_data", "compile",
    "activation_checkpointing",
}  # fmt: skip
ADJUSTABLE = {"steps", "minutes", "base_lr", "grad_clip"}
BEAT = 10.0  # seconds between heartbeats
LAST_WORDS = 2.0  # seconds in which the ranks that live say so before one is named as dead
PLOT_EVERY = 300.0  # seconds between drawings of the curves, which take a second or two
LOCK = ".lock"

Metrics = Mapping[str, float | list[float]]
ValidationSet = PixelSource | TokenSource
TrainingSet = ValidationSet | Stream


class RunFolder:
    """The files of one run; only the main rank writes. Use as a context manager: closing flushes what is buffered.

    A new folder is made by `begin`, once all that could refuse the run has been checked.

    Attributes:
        path: the folder.
        checkpoint: what the run goes on from; None for a new one.
    """

    def __init__(self, config: RunConfig, ranks: Ranks) -> None:
        """Check the folder for a new run, or open the one in it to go on.

        Raises:
            ValueError: the folder cannot be written; it holds a run or a model and `resume` is off; or `resume` is
                on and it holds no run, one with no whole checkpoint, or one with other settings.
        """
        self.path, self._ranks, self._config = Path(config.out), ranks, config
        self._events: SummaryWriter | None = None
        self._beat, self._step = 0.0, 0
        self._plotted = 0.0
        self._plots = self._tensorboard = True  # whether the packages that these need are installed
        self._lock: IO[str] | None = None
        self._settings = json.loads(json.dumps(asdict(config)))
        self._unit = "steps" if config.minutes is None else "minutes"  # of the run's length
        try:
            self.checkpoint = ranks.on_main(self._open)
        except BaseException:
            self._let_go()
            raise

    def _open(self) -> checkpoints.Found | None:
        config = self._config
        writable_folder(config.out, "out")
        if self.path.is_dir():
            self._lock = _alone(self.path, config.out)
        begun = checkpoints.exist(self.path)
        if begun and not config.resume:
            raise ValueError(f"out = {config.out!r}: holds a run; give --resume to go on with it, or a new folder")
        # A run that was killed before its first checkpoint leaves its settings, and perhaps its first bundle.
        if not begun and is_bundle(self.path) and not (self.path / SETTINGS).is_file():
            raise ValueError(f"out = {config.out!r}: holds a model, which this run would replace; give a new folder")
        if not begun and (self.path / SETTINGS).is_file() and self._had_checkpoints():
            raise ValueError(f"out = {config.out!r}: holds a run whose checkpoints are gone; give a new folder")
        if not begun and config.resume:
            raise ValueError(f"out = {config.out!r}: holds no checkpoint to resume; leave --resume out to start")
        if not begun:
            return None
        found = checkpoints.latest(self.path)
        self._check_length(found)
        self._check_same(self._settings)
        return found

    def _check_length(self, found: checkpoints.Found) -> None:
        """Refuse what is over already, and steps in place of minutes."""
        config, before = self._config, _read_json(self.path / SETTINGS)
        name, other = ("minutes", "steps") if config.steps is None else ("steps", "minutes")
        wanted, run = getattr(config, name), f"the run in {str(self.path)!r}"
        if before.get(name) is None and before.get(other) is not None:
            begun = f"{other} = {_shown(before[other])}"
            raise ValueError(
                f"{name} = {_shown(wanted)}: {run} was begun with {begun}; resume with {other}, or start a new run"
            )
        done: float = found.step
        if name == "minutes":  # the last checkpoint of a whole run comes shortly before its end, or after it
            course = found.notes["course"]
            done = round(course["spent"] / 60, 1)
            if course["share"] < 1:  # steps may be ahead of time: their share of fewer minutes must not be all of them
                done = max(done, math.floor(10 * course["share"] * course["minutes"]) / 10 + 0.1)
            done = min(done, before["minutes"])
        if wanted < done:
            raise ValueError(f"{name} = {_shown(wanted)}: {run} has done {_shown(done)}; give at least as many")

    def _had_checkpoints(self) -> bool:
        """Whether a run's metrics go past its first checkpoint; of one of minutes, whether it has a bundle, which is
        written just before."""
        settings = _read_json(self.path / SETTINGS)
        if settings.get("minutes") is not None and settings.get("checkpoint_every") is None:
            return is_bundle(self.path)
        steps = [record["step"] for record in self._records()]
        first = settings.get("checkpoint_every") or 0
        return bool(steps) and (steps[-1] > first or steps[-1] == settings.get("steps"))

    def _records(self) -> list[dict[str, Any]]:
        """What metrics.jsonl holds; a killed run may leave half a line at its end, which is left out."""
        path = self.path / METRICS
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _check_same(self, settings: Mapping[str, Any]) -> None:
        before = _with_defaults(_read_json(self.path / SETTINGS), self._config)
        changed = {
            name: f"{name} = {_shown(settings[name])}: the run in {str(self.path)!r} has {_shown(before.get(name))}"
            for name in sorted(settings.keys() - FREE)
            if before.get(name) != settings[name]
        }
        fix = "resume with its settings, or start a new run"
        raise_problems(f"{text}; {fix}" for name, text in changed.items() if name not in ADJUSTABLE)
        for text in changed.values():
            warnings.warn(f"{text}; it goes on with the new value", stacklevel=3)

    def check(self, images: TrainingSet, held_out: ValidationSet, tokenizer: str | None = None) -> float:
        """Say what the run trains on; when it is resumed, check that this is still so. Nothing is written yet.

        Args:
            images: the training images.
            held_out: the validation images.
            tokenizer: fingerprint of the tokenizer whose token maps are trained on.

        Returns:
            The steps or minutes that the run was begun for, of which its phases are shares: more do not bring them
            back.

        Raises:
            ValueError: the classes or the tokenizer have changed.
        """
        self._data = self._ranks.on_main(lambda: self._checked(images, held_out, tokenizer))
        return self._data[self._unit]

    def _checked(self, images: TrainingSet, held_out: ValidationSet, tokenizer: str | None) -> dict[str, Any]:
        """What data.json is to hold."""
        classes = counted(len(images.classes), "class", "classes") if images.classes else "no classes"
        n = None if isinstance(images, Stream) else len(images)
        shards = f"a stream of {counted(len(images.urls), 'shard')}" if isinstance(images, Stream) else None
        what = shards or counted(n or 0, "training image")
        print(f"{what} of {classes}, {counted(len(held_out), 'image')} for validation", file=sys.stderr)
        path = self.path / DATA
        now: dict[str, Any] = {"images": n, "classes": images.classes, "tokenizer": tokenizer}
        now |= {"content": images.fingerprint(), "val_content": held_out.fingerprint()}
        before = _read_json(path) if self.checkpoint is not None and path.is_file() else dict(now)
        if before.get("classes") != now["classes"]:
            raise ValueError(
                f"data: has classes {now['classes']}, the run began with {before.get('classes')}; resume with its data"
            )
        if before.get("tokenizer") != tokenizer:
            raise ValueError("tokenizer: has other weights than the one the run began with; resume with that one")
        if before.get("images") != n:
            text = f"data: has {n} training images, the run had {before.get('images')}"
            warnings.warn(f"{text}; from here on their order differs from that of an unbroken run", stacklevel=4)
        elif _others(before.get("content"), now["content"]):
            text = "data: has other training images or labels than the run had, though as many"
            warnings.warn(f"{text}; the result will not be that of an unbroken run", stacklevel=4)
        if _others(before.get("val_content"), now["val_content"]):
            text = "data: has other validation images than the run had"
            warnings.warn(f"{text}; losses before and after cannot be compared", stacklevel=4)
        return now | {self._unit: before.get(self._unit, self._settings[self._unit])}

    def begin(self, decided: Mapping[str, Any] | None = None) -> None:
        """Note what the run trains on and its settings, after `check`.

        Args:
            decided: values of the model's config that follow from the data, whatever the settings say.

        Raises:
            ValueError: another process has taken the folder meanwhile.
        """
        self._ranks.on_main(lambda: self._begin(decided))

    def _begin(self, decided: Mapping[str, Any] | None) -> None:
        self._plots = has_extra("matplotlib", "plots", CURVES)
        self._tensorboard = has_extra("tensorboard", "tensorboard", "TensorBoard events")
        self.path.mkdir(parents=True, exist_ok=True)
        if self._lock is None and self.checkpoint is None:  # what was missing before may be another's by now
            self._open()
        if self.checkpoint is not None:
            checkpoints.set_aside_after(self.checkpoint)
        self._cut_metrics()
        _write_json(self.path / DATA, self._data)
        _write_json(self.path / SETTINGS, self._settings | ({} if decided is None else {"decided": decided}))
        starts = self.path / ENVIRONMENT
        earlier = _read_json(starts)["starts"] if self.checkpoint is not None and starts.is_file() else []
        _write_json(starts, {"starts": [*earlier, _environment(self._ranks, self.last_step())]})
        for name in (PREVIEWS, HEARTBEATS):
            (self.path / name).mkdir(exist_ok=True)

    def _cut_metrics(self) -> None:
        """Drop what was logged after the checkpoint, or by a run that ended before its first one."""
        done = self.last_step()
        kept = [record for record in self._records() if record["step"] <= done]
        if (self.path / METRICS).is_file():
            write_text(self.path / METRICS, "".join(f"{json.dumps(record)}\n" for record in kept))

    def last_step(self) -> int:
        """Updates done in the last checkpoint, 0 where there is none."""
        return max((found.step for found in checkpoints.whole(self.path)), default=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._let_go()
        if self._events is not None:
            self._events.close()

    def _let_go(self) -> None:
        """Let others train in the folder."""
        if self._lock is not None:
            with suppress(OSError):
                Path(self._lock.name).unlink()
            self._lock.close()

    def log(self, step: int, values: Metrics) -> None:
        """Append one line to metrics.jsonl and the same to TensorBoard; lists hold one number a scale."""
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

    def plot(self, last: bool) -> None:
        """Draw the metrics so far: the last time, and every few minutes before."""
        if self._ranks.main and self._plots and (last or time.time() - self._plotted > PLOT_EVERY):
            self._plotted = time.time()
            from mvar.training.run.curves import draw_curves  # matplotlib takes a second to import

            draw_curves(self._records(), self.path / CURVES)

    def heartbeat(self, step: int) -> None:
        """Note that this rank is at this step, every few seconds."""
        now = time.time()
        self._step = step
        if now - self._beat >= BEAT:
            self._beat = now
            self._write_beat(step)

    def _write_beat(self, step: int) -> None:
        path = self.path / HEARTBEATS / f"rank-{self._ranks.rank}.json"
        _write_json(path, {"step": step, "time": time.time()})

    def list_images(self, step: int, names: Sequence[str]) -> Path:
        """Write the names of a step's images, one a line; returns the file."""
        path = self.path / f"images-of-step-{step:07d}.txt"
        if self._ranks.main:
            write_text(path, "".join(f"{name}\n" for name in names))
        return path

    def silent_ranks(self, ranks: Ranks) -> str:
        """Which other rank was heard of longest ago, after an exchange has failed and all that live have said so."""
        self._write_beat(self._step)
        time.sleep(LAST_WORDS)
        beats = {}
        for rank in range(ranks.size):
            with suppress(ValueError):
                beats[rank] = _read_json(self.path / HEARTBEATS / f"rank-{rank}.json")
        others = {rank: beat["time"] for rank, beat in beats.items() if rank != ranks.rank}
        if not others:
            return "another rank does not answer"
        rank = min(others, key=lambda rank: others[rank])
        ago = time.time() - others[rank]
        step = beats[rank]["step"]
        return f"another rank does not answer: rank {rank} was last heard of {ago:.0f} s ago, near step {step}"


def _shown(value: Any) -> str:
    """A setting in a message: 15 minutes, though the number is 15.0."""
    return f"{value:g}" if isinstance(value, float) else repr(value)


def _with_defaults(before: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """The settings of a run; those that its version did not have yet are what means "as before", the defaults."""
    plain = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    model = asdict(type(config.model)())  # type: ignore[attr-defined]
    defaults = json.loads(json.dumps({**plain, "model": model}))
    return {**defaults, **before, "model": {**defaults["model"], **before.get("model", {})}}


def _others(before: str | None, now: str) -> bool:
    """Whether two fingerprints tell of different images; those of images and of a token cache cannot be compared."""
    return before is not None and before.partition(" ")[0] == now.partition(" ")[0] and before != now


def provenance(config: RunConfig, steps: int) -> dict[str, Any]:
    """Where a model that was trained for so many updates comes from, for its bundle."""
    return {
        "trained_with": f"mvar {__version__}, torch {torch.__version__}",
        # The address of a stream may hold a password.
        "data": "a stream of shards" if is_stream(config.data) else Path(config.data).resolve().name,
        "steps": steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def _alone(folder: Path, out: str) -> IO[str] | None:
    """Hold the folder for this process until it ends, however it ends; None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    file = open(folder / LOCK, "w", encoding="utf-8")  # noqa: SIM115  # held open as long as the run lasts
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise ValueError(f"out = {out!r}: another process trains in this folder; wait for it, or stop it") from error
    except OSError:  # a file system without locks
        pass
    return file


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); the file is damaged, start a new run") from error


def _environment(ranks: Ranks, step: int) -> dict[str, Any]:
    """What this start of a run is made of."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    revision = None
    with suppress(OSError, subprocess.SubprocessError):  # no git, a slow disk, no repository
        revision = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": step,
        "command": sys.argv,
        "mvar": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git": revision,
        "system": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else str(ranks.device),
        "ranks": ranks.size,
        "parallel": ranks.kind,
    }
