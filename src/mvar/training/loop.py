"""The training loop, the same for tokenizer and generator: it reads top to bottom.

Step i sees the same images and the same noise whatever happened before it, so a resumed run equals an unbroken one; and
whatever the number of ranks and parts that its batch is cut into.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mvar.data.loader import Loader
from mvar.data.shards.stream import StreamLoader
from mvar.training.average import WeightAverage
from mvar.training.config import RunConfig
from mvar.training.course import Course
from mvar.training.optim import set_schedule
from mvar.training.parallel import Ranks, accumulating, is_silence, whole
from mvar.training.run import checkpoints
from mvar.training.run.checkpoints import Checkpoints, Found
from mvar.training.run.folder import PREVIEWS, Metrics, RunFolder, ValidationSet
from mvar.training.run.progress import Progress
from mvar.training.stopping import Request, Stopped, stop_request

# Called on the main rank with each record of metrics and the updates done; what returns True stops the run.
Callback = Callable[[int, Metrics], bool | None]

SPIKE = 5.0  # a gradient norm so many times its running mean is reported
MEMORY = 0.98  # weight of the past in that mean
SETTLED = 100  # updates until the mean says what is usual
LEAST_SCALE = 2.0**-14  # of the float16 loss; below it no number is small enough for the gradients


class Task(Protocol):
    """What is trained. The loop owns schedules and files; a task owns its model, data and losses.

    Attributes:
        course: how long the run is, and where it is.
        val_images: what it is judged by.
    """

    course: Course
    val_images: ValidationSet

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What is trained, "model" first; each is clipped by its own gradient norm."""

    @property
    def called(self) -> list[nn.Module]:
        """The modules that a step calls: those networks, or what spreads them over the ranks."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Their optimizer; each parameter group says by "decay" whether weight decay applies."""

    @property
    def loader(self) -> Loader | StreamLoader:
        """This rank's batches."""

    @property
    def average(self) -> WeightAverage:
        """The moving average of the model's weights, which the loop updates."""

    def phases(self) -> list[float]:
        """The shares of the run at which a step becomes dearer, 0 first."""

    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of one part of this rank's batch, and scalars to log."""

    def after_update(self, step: int) -> None:
        """What follows the optimizer's update, such as care for the codebook."""

    def validate(self) -> Metrics:
        """Losses and statistics on the validation images, "val_loss" among them; the same on every rank."""

    def preview(self, path: Path) -> None:
        """Write a sheet of images; every rank calls it."""

    def save_bundle(self, folder: Path, steps: int) -> None:
        """Write the model as it is now, after so many updates, ready to load; every rank calls it."""

    def state(self) -> dict[str, Tensor]:
        """Live tensors that the task must remember besides weights and optimizer, the same on every rank; resuming
        fills them."""


def fit(task: Task, config: RunConfig, folder: RunFolder, ranks: Ranks, callbacks: Sequence[Callback] = ()) -> Metrics:
    """Train to the end of the task's course, from the folder's last checkpoint where `config.resume`.

    Returns:
        The last validation.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; raised before the update, with the step's number, its
            images and the last checkpoint.
        ValueError: no checkpoint is whole, or it is of another model.
        Stopped: a signal or a callback asked; there is a checkpoint of the last step.
        ConnectionError: another rank died or does not answer.
        OSError: the disk is full.
    """
    keeper = Checkpoints(folder.path, ranks, config.keep_checkpoints)
    loop = _Loop(task, config, folder, ranks, keeper, callbacks)
    try:
        with stop_request() as request:
            try:
                return loop.run(request)
            except RuntimeError as error:
                if ranks.kind is None or not is_silence(error):
                    raise
                silent = folder.silent_ranks(ranks)  # torchrun's SIGTERM, which comes now, must not cut this short
                raise ConnectionError(f"{silent}; go on from the last checkpoint with --resume") from error
    finally:
        keeper.close()
        loop.progress.close()


class _Loop:
    """One call of `fit`."""

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        folder: RunFolder,
        ranks: Ranks,
        keeper: Checkpoints,
        callbacks: Sequence[Callback],
    ) -> None:
        self.task, self.config, self.folder, self.ranks = task, config, folder, ranks
        self.course = task.course
        self.keeper, self.callbacks = keeper, callbacks
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.dtype == "float16")
        self.usual_norm = 0.0  # running mean of the model's gradient norm
        self.validation: Metrics = {}
        self.validated = 0  # updates done at the last validation
        self.done = self._restore(folder.checkpoint) if folder.checkpoint is not None else 0
        self.progress = Progress(self.done, self.course.steps, self.course.ends(), speaks=ranks.main)

    def run(self, request: Request) -> Metrics:
        task, config, folder, course = self.task, self.config, self.folder, self.course
        while (step := self.done) < course.steps:
            folder.heartbeat(step)
            if news := course.lay(self.ranks):
                self.progress.say(news)
            lr = set_schedule(task.optimizer, *course.place(step), config)
            task.optimizer.zero_grad(set_to_none=True)
            loss, metrics = backward(task, self.ranks, self.scaler, config.accumulate, step)
            self.scaler.unscale_(task.optimizer)
            norms = clip(task.networks, config.grad_clip)
            stop = self._agree(step, loss, norms, request)
            self.scaler.step(task.optimizer)
            self.scaler.update()
            task.after_update(step)
            task.average.update(step)
            course.advance()
            self.progress.advance(config.batch_size, loss, course.steps)
            self.keeper.poll()

            self.done, last = step + 1, step + 1 == course.steps
            self._watch(norms["grad_norm"])
            if self.done % config.log_every == 0 or last:
                rates = {"lr": lr, "images_per_second": self.progress.rate}
                self._log({"loss": loss, **metrics, **norms, **rates}, request)
            if last:
                stop = None  # there is nothing to go on with
            if stop is not None:  # a grace period may end: what cannot be had again comes first
                self._save_checkpoint()
                self.keeper.wait()
                self._save_bundle()
            if course.is_due("validation", self.done):
                with course.timing("validation"):
                    self._validate(request)
                with course.timing("curves"):
                    self.folder.plot(last=last)
            if stop is not None:
                self.folder.plot(last=True)
                self.ranks.gather(None)  # torchrun ends all ranks when one ends: not before the files are in place
                raise Stopped(f"stopped after step {self.done} with a checkpoint; --resume goes on", stop)
            if course.is_due("checkpoint", self.done):
                with course.timing("checkpoint"):
                    self._save_bundle()
                    self._save_checkpoint()  # last, since a run with all its steps in it has nothing left to do
                    if config.minutes is not None:
                        self.keeper.wait()  # so that its time is known
        self.keeper.wait()
        return self.validation

    def _agree(self, step: int, loss: Tensor, norms: Mapping[str, float], request: Request) -> int | None:
        """Stop all ranks before an update that would spoil the weights; say whether one was asked to stop, and why.

        Returns:
            The exit status where someone asked to stop, else None.
        """
        values = {"loss": float(loss), **norms}
        if self.scaler.is_enabled() and self.scaler.get_scale() >= LEAST_SCALE:
            values = {"loss": float(loss)}  # a gradient beyond float16 only makes the scaler skip this update
        bad = next((name for name, value in values.items() if not math.isfinite(value)), None)
        asked = 1 + request.signal if request.asked else 0
        # What the ranks agree on: a step that is not finite is so for all, as loss and norms are means over them.
        asked = int(self.ranks.largest(torch.tensor(asked)))
        if bad is not None:
            self.keeper.wait()
            names = [name for part in self.ranks.gather(self.task.loader.names(step)) for name in part]
            shown = ", ".join(names[:8])
            if len(names) > 8:
                shown += f" and {len(names) - 8} more, listed in {self.folder.list_images(step + 1, names)}"
            saved = self.folder.last_step()
            raise FloatingPointError(
                f"{bad} = {values[bad]} at step {step + 1}, images {shown}: stopped before the update; "
                + (f"resume from the checkpoint of step {saved}" if saved else "start anew")
                + ", with a lower base_lr or grad_clip, or without these images"
            )
        if not asked:
            return None
        return 128 + asked - 1 if asked > 1 else 0

    def _watch(self, norm: float) -> None:
        """Report a gradient norm far above what is usual."""
        if not math.isfinite(norm):  # the scaler has skipped this update
            return
        if self.done > SETTLED and norm > SPIKE * self.usual_norm:
            self.folder.log(self.done, {"grad_norm_spike": norm, "grad_norm_usual": self.usual_norm})
            self.progress.say(f"step {self.done}: gradient norm {norm:.3g}, usually {self.usual_norm:.3g}")
        self.usual_norm = MEMORY * self.usual_norm + (1 - MEMORY) * norm if self.usual_norm else norm

    def _log(self, values: Mapping[str, Any], request: Request) -> None:
        record = {name: value if isinstance(value, list) else float(value) for name, value in values.items()}
        self.folder.log(self.done, record)
        if self.ranks.main and True in [callback(self.done, record) for callback in self.callbacks]:
            request.ask()

    def _validate(self, request: Request) -> None:
        task, model = self.task, self.task.networks["model"]
        model.eval()
        with task.average.applied():
            self.validation, self.validated = task.validate(), self.done
            task.preview(self.folder.path / PREVIEWS / f"{self.done:07d}.png")
        model.train()
        self._log(self.validation, request)
        self.progress.report(self.done, self.validation)

    def _save_bundle(self) -> None:
        with self.task.average.applied():
            self.task.save_bundle(self.folder.path, self.done)

    def _save_checkpoint(self) -> None:
        places = self.ranks.gather(self.task.loader.state())
        notes = {
            "score": self.validation["val_loss"] if self.validated == self.done else None,
            "usual_norm": self.usual_norm,
            "scaler": self.scaler.state_dict(),
            "course": self.course.notes(),
            "loader": min(places, key=lambda place: place.get("shards", 0)),  # streams: no rank skips anything
        }
        self.keeper.save(self.done, _tensors(self.task), notes)

    def _restore(self, found: Found) -> int:
        """Load a checkpoint into the task; returns the steps done."""
        task = self.task
        try:
            _make_moments(task, checkpoints.stored(found))
            checkpoints.read(found, _tensors(task), self.ranks)
            self.scaler.load_state_dict(found.notes["scaler"])
            self.usual_norm = found.notes["usual_norm"]
            task.loader.load_state(found.notes["loader"])
        except (KeyError, RuntimeError, ValueError) as error:  # a tokenizer of another size, for one
            raise ValueError(f"{found.path}: does not fit the model to be trained ({error})") from error
        return found.step


# --- parts ---


def backward(
    task: Task, ranks: Ranks, scaler: torch.amp.GradScaler, parts: int, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of a step's whole batch, part by part; returns the mean loss and metrics over parts and ranks."""
    sums: dict[str, Tensor] = {}
    for part in range(parts):
        with accumulating(task.called, last=part == parts - 1):
            loss, metrics = task.loss(step, part)
            scaler.scale(loss / parts).backward()
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() / parts
    means = dict(zip(sums, ranks.mean(torch.stack(list(sums.values()))).unbind(), strict=True))
    return means.pop("loss"), means


def clip(networks: Mapping[str, nn.Module], most: float) -> dict[str, float]:
    """Clip each network's gradients; returns their norms before."""
    norms = {}
    for name, network in networks.items():
        trained = [p for p in network.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, most)
        norms["grad_norm" if name == "model" else f"grad_norm_{name}"] = float(whole(norm))
    return norms


def _tensors(task: Task) -> dict[str, Tensor]:
    """All that a checkpoint holds, by name; these are the live tensors."""
    tensors = {f"average.{name}": value for name, value in task.average.state().items()}
    tensors |= {f"task.{name}": value for name, value in task.state().items()}
    for network, module in task.networks.items():
        tensors |= {f"{network}.{name}": value for name, value in module.state_dict().items()}
        for name, parameter in module.named_parameters():
            for key, value in task.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{network}.{name}.{key}"] = value
    return tensors


def _make_moments(task: Task, stored: Mapping[str, Any]) -> None:
    """Give the optimizer the state that a checkpoint will fill; a parameter without one has not been updated yet."""
    for network, module in task.networks.items():
        for name, parameter in module.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"optimizer.{network}.{name}.{key}" in stored:
                    value = torch.zeros_like(parameter)
                    if key == "step":
                        value = torch.zeros((), device=parameter.device)  # where the fused AdamW wants it
                    task.optimizer.state[parameter][key] = value
