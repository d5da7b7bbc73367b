"""The training loop, the same for tokenizer and generator: it reads top to bottom.

Step i sees the same images and the same noise whatever happened before it, so a resumed run equals an unbroken one.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mvar.training.config import RunConfig
from mvar.training.optim import set_schedule
from mvar.training.run_folder import CHECKPOINT, PREVIEWS, RunFolder

Metrics = Mapping[str, float | list[float]]


class Task(Protocol):
    """What is trained. The loop owns steps, schedules and files; a task owns its model, data and losses."""

    @property
    def model(self) -> nn.Module:
        """What is trained."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Its optimizer; each parameter group says by "decay" whether weight decay applies."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of this step's batch, and scalars to log."""

    def after_update(self, step: int) -> None:
        """What follows the optimizer's update, such as care for the codebook."""

    def validate(self) -> Metrics:
        """Losses and statistics on the validation images."""

    def preview(self, path: Path) -> None:
        """Write a sheet of images."""

    def save_bundle(self, folder: Path) -> None:
        """Write the model as it is now, ready to load."""

    def state(self) -> dict[str, Any]:
        """What the task itself must remember to resume, besides weights and optimizer."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""


def fit(task: Task, config: RunConfig, folder: RunFolder) -> Metrics:
    """Train until `config.steps`, from the folder's checkpoint where `config.resume`; returns the last validation.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; raised before the update, with the step's number.
        ValueError: the checkpoint is damaged.
    """
    done = _restore(task, folder) if config.resume else 0
    validation: Metrics = {}
    progress = Progress(done, config.steps)
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    for step in range(done, config.steps):
        torch.manual_seed(_step_seed(config.seed, step))
        lr = set_schedule(task.optimizer, step, config)

        loss, metrics = task.loss(step)
        task.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        _check_finite(step, loss.detach(), grad_norm, folder)
        task.optimizer.step()
        task.after_update(step)
        progress.advance(config.batch_size, loss)

        done, last = step + 1, step + 1 == config.steps
        if done % config.log_every == 0 or last:
            values = {name: float(value) for name, value in metrics.items()}
            rates = {"lr": lr, "grad_norm": float(grad_norm), "images_per_second": progress.rate}
            folder.log(done, {"loss": float(loss.detach()), **values, **rates})
        if done % config.validate_every == 0 or last:
            task.model.eval()
            validation = task.validate()
            task.preview(folder.path / PREVIEWS / f"{done:07d}.png")
            task.model.train()
            folder.log(done, validation)
            progress.report(done, validation)
        if done % config.checkpoint_every == 0 or last:
            task.save_bundle(folder.path)
            # Last, since a run with all its steps in the checkpoint has nothing left to do.
            model, optimizer = task.model.state_dict(), task.optimizer.state_dict()
            folder.save({"step": done, "model": model, "optimizer": optimizer, "task": task.state()})
    progress.close()
    return validation


def _restore(task: Task, folder: RunFolder) -> int:
    """Load the folder's checkpoint into the task; returns the steps done."""
    state = folder.load()
    try:
        task.model.load_state_dict(state["model"])
        task.optimizer.load_state_dict(state["optimizer"])
        task.load_state(state["task"])
    except (KeyError, RuntimeError, ValueError) as error:  # a tokenizer of another size, for one
        raise ValueError(f"{folder.path / CHECKPOINT}: does not fit the model to be trained ({error})") from error
    return state["step"]


def _step_seed(seed: int, step: int) -> int:
    """Seed of torch's global generator for one step."""
    return (seed * 1_000_003 + step) % 2**63


def _check_finite(step: int, loss: Tensor, grad_norm: Tensor, folder: RunFolder) -> None:
    """Stop before the update that would spoil the weights."""
    for name, value in (("loss", loss), ("gradient norm", grad_norm)):
        if not torch.isfinite(value):
            saved = (folder.path / CHECKPOINT).is_file()
            fix = f"resume from the checkpoint in {str(folder.path)!r}, which is untouched," if saved else "start anew"
            raise FloatingPointError(
                f"{name} = {float(value)} at step {step + 1}: stopped before the update; "
                f"{fix} with a lower base_lr or grad_clip"
            )


class Progress:
    """A bar with rate and remaining time on a terminal; a line for each validation when piped."""

    def __init__(self, done: int, steps: int) -> None:
        self.steps, self.images, self.start = steps, 0, time.perf_counter()
        self.bar = tqdm(initial=done, total=steps, unit="step") if sys.stderr.isatty() else None

    @property
    def rate(self) -> float:
        """Images a second since the start of this process, validation included."""
        return self.images / max(time.perf_counter() - self.start, 1e-9)

    def advance(self, images: int, loss: Tensor) -> None:
        """One more update."""
        self.images += images
        if self.bar is not None:
            self.bar.update()
            if self.bar.n % 10 == 0:
                self.bar.set_postfix_str(f"loss {float(loss.detach()):.4f}, {self.rate:.0f} images/s")

    def report(self, done: int, metrics: Metrics) -> None:
        """Print a validation."""
        text = ", ".join(f"{name} {_number(value)}" for name, value in metrics.items())
        line = f"step {done}/{self.steps}, {self.rate:.0f} images/s: {text}"
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self.bar is not None:
            self.bar.close()


def _number(value: float | list[float]) -> str:
    return " ".join(f"{v:.3g}" for v in value) if isinstance(value, list) else f"{value:.4g}"
