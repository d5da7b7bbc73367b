"""The training loop, the same for tokenizer and generator.

Step i sees the same images and the same noise on any number of ranks, with any number of gradient accumulation steps,
and whatever happened before it: a resumed run equals an unbroken one.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from mvar.training.config import RunConfig
from mvar.training.finite import FiniteCheck
from mvar.training.optim import set_schedule
from mvar.training.parallel import Ranks, accumulating, full, is_silence
from mvar.training.run import checkpoints
from mvar.training.run.checkpoints import Checkpoints, Found
from mvar.training.run.folder import PREVIEWS, RunFolder
from mvar.training.stopping import Stopped, stop_request
from mvar.training.task import Metrics, Task

# Called on the main rank with the steps done and each record of metrics; one that returns True stops the run.
Callback = Callable[[int, Metrics], bool | None]


@dataclass
class State:
    """What a run carries from step to step, besides what its task owns."""

    scaler: torch.amp.GradScaler  # of the float16 loss; without effect for other dtypes
    step: int = 0  # optimizer steps done
    validation: Metrics = field(default_factory=dict)  # of the last validation
    validated_at: int = 0  # steps done at that validation


def fit(task: Task, config: RunConfig, folder: RunFolder, ranks: Ranks, callbacks: Sequence[Callback] = ()) -> Metrics:
    """Train to the end of the task's course, from the folder's checkpoint if it has one; returns the last validation.

    Long on purpose: the whole loop can be read from top to bottom.

    Raises:
        FloatingPointError: the loss or a gradient is not finite; raised before the update.
        ValueError: the checkpoint is of another model.
        Stopped: a signal or a callback asked to stop; the last step has a checkpoint.
        ConnectionError: another rank died or does not answer.
        OSError: the disk is full.
    """
    course = task.course
    state = State(torch.amp.GradScaler(ranks.device.type, enabled=config.dtype == "float16"))
    if folder.checkpoint is not None:
        restore(task, state, folder.checkpoint, ranks)
    silent = not (ranks.main and sys.stderr.isatty())
    with (
        tqdm(initial=state.step, total=course.steps, unit="step", disable=silent) as bar,
        closing(Checkpoints(folder.path, ranks, config.keep_checkpoints)) as saved,
        stop_request() as request,
        missing_other_ranks(ranks),  # before torchrun's SIGTERM is handled
    ):
        begun, start = state.step, time.perf_counter()
        finite = FiniteCheck(task, saved, state.scaler)

        def rate() -> float:  # over all ranks since this start, validation included
            return (state.step - begun) * config.batch_size / (time.perf_counter() - start)

        def say(line: str) -> None:
            if ranks.main:
                bar.write(line, file=sys.stderr)

        def log(values: Mapping[str, Any]) -> None:
            record = {name: value if isinstance(value, list) else float(value) for name, value in values.items()}
            folder.log(state.step, record)
            if ranks.main and True in [callback(state.step, record) for callback in callbacks]:
                request.ask()

        while state.step < course.steps:
            if news := course.lay(ranks):
                say(news)

            # One optimizer step.
            lr = set_schedule(task.optimizer, *course.place(state.step), config)
            task.optimizer.zero_grad(set_to_none=True)
            loss, metrics = backward(task, ranks, state.scaler, config.accumulate, state.step)
            state.scaler.unscale_(task.optimizer)
            norms = clip(task.networks, config.grad_clip)
            finite.before_update(state.step, {"loss": loss, **norms})
            exit_code = int(ranks.total(torch.tensor(request.code), dist.ReduceOp.MAX))
            state.scaler.step(task.optimizer)
            state.scaler.update()
            task.after_update(state.step)
            task.average.update(state.step)
            course.advance()
            saved.poll()
            state.step += 1
            bar.total = course.steps
            bar.update()

            last, logs = state.step == course.steps, state.step % config.log_every == 0
            stopping = exit_code >= 0 and not last  # at the last step nothing is left to resume
            writes = course.is_due("validation", state.step) or course.is_due("checkpoint", state.step)
            if last or logs or stopping or writes:
                finite.settle()

            # Metrics.
            if logs or last:
                log({"loss": loss, **metrics, **norms, "lr": lr, "images_per_second": rate()})
                bar.set_postfix_str(f"loss {float(loss):.4f}")

            # Files. When stopping, a grace period may end soon: what cannot be computed again is saved first.
            if stopping:
                save_checkpoint(task, state, ranks, saved)
                saved.wait()
                task.save_bundle(folder.path, state.step)
            if course.is_due("validation", state.step):
                with course.timing("validation"):
                    validate(task, state, folder)
                    log(state.validation)
                    say(f"step {state.step}/{course.steps}, {rate():.0f} images/s: {in_words(state.validation)}")
                folder.plot(last=last)
            if stopping:
                folder.plot(last=True)
                ranks.gather(None)  # torchrun ends all ranks when one ends: not before the files are written
                raise Stopped(f"stopped after step {state.step} with a checkpoint; --resume goes on", exit_code)
            if course.is_due("checkpoint", state.step):
                with course.timing("checkpoint"):
                    task.save_bundle(folder.path, state.step)
                    save_checkpoint(task, state, ranks, saved)  # after the bundle: a run with all its steps is over
                    if config.minutes is not None:
                        saved.wait()  # so that its time is known
        saved.wait()
        return state.validation


# --- one step ---


def backward(
    task: Task, ranks: Ranks, scaler: torch.amp.GradScaler, accumulate: int, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients of one optimizer step; returns the mean loss and metrics over micro-batches and ranks."""
    sums: dict[str, Tensor] = {}
    for part in range(accumulate):
        with accumulating(task.called, last=part == accumulate - 1):
            loss, metrics = task.loss(step, part)
            scaler.scale(loss / accumulate).backward()
        for name, value in {"loss": loss, **metrics}.items():
            sums[name] = sums.get(name, 0.0) + value.detach().float() / accumulate
    means = dict(zip(sums, ranks.mean(torch.stack(list(sums.values()))).unbind(), strict=True))
    return means.pop("loss"), means


def clip(networks: Mapping[str, nn.Module], most: float) -> dict[str, Tensor]:
    """Clip each network's gradients; returns their norms before clipping."""
    norms = {}
    for name, network in networks.items():
        trained = [p for p in network.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(trained, most)
        norms["grad_norm" if name == "model" else f"grad_norm_{name}"] = full(norm)
    return norms


@contextmanager
def missing_other_ranks(ranks: Ranks) -> Iterator[None]:
    """Raise ConnectionError where communication fails."""
    try:
        yield
    except RuntimeError as error:
        if ranks.kind is None or not is_silence(error):
            raise
        raise ConnectionError("another rank does not answer; go on from the last checkpoint with --resume") from error


# --- validation and files ---


def in_words(metrics: Metrics) -> str:
    """Metrics in a line, those of each scale side by side."""
    words = []
    for name, value in metrics.items():
        numbers = [f"{v:.3g}" for v in value] if isinstance(value, list) else [f"{value:.4g}"]
        words.append(f"{name} {' '.join(numbers)}")
    return ", ".join(words)


def validate(task: Task, state: State, folder: RunFolder) -> None:
    """Validate the averaged weights and write a preview."""
    model = task.networks["model"]
    model.eval()
    with task.average.applied():
        state.validation, state.validated_at = task.validate(), state.step
        task.preview(folder.path / PREVIEWS / f"{state.step:07d}.png")
    model.train()


def save_checkpoint(task: Task, state: State, ranks: Ranks, saved: Checkpoints) -> None:
    """Save everything from which the run can resume."""
    positions = ranks.gather(task.loader.state())
    notes = {
        "score": state.validation["val_loss"] if state.validated_at == state.step else None,
        "scaler": state.scaler.state_dict(),
        "course": task.course.notes(),
        "loader": min(positions, key=lambda position: position.get("shards", 0)),  # streams: no rank skips anything
    }
    saved.save(state.step, checkpointed(task), notes)


def restore(task: Task, state: State, found: Found, ranks: Ranks) -> None:
    """Load a checkpoint into task and state."""
    stored = checkpoints.stored(found)
    for network, module in task.networks.items():
        for name, parameter in module.named_parameters():
            # To be filled; a parameter that was never updated has no state.
            if f"optimizer.{network}.{name}.step" in stored:
                task.optimizer.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),  # where the fused AdamW wants it
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
    try:
        checkpoints.read(found, checkpointed(task), ranks)
        state.scaler.load_state_dict(found.notes["scaler"])
        task.loader.load_state(found.notes["loader"])
        state.step = found.step
    except (KeyError, RuntimeError, ValueError) as error:  # such as a tokenizer of another size
        raise ValueError(f"{found.path}: does not fit the model to be trained ({error})") from error


def checkpointed(task: Task) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name; these are the live tensors."""
    tensors = {f"average.{name}": value for name, value in task.average.state().items()}
    tensors |= {f"task.{name}": value for name, value in task.state().items()}
    for network, module in task.networks.items():
        tensors |= {f"{network}.{name}": value for name, value in module.state_dict().items()}
        for name, parameter in module.named_parameters():
            for key, value in task.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{network}.{name}.{key}"] = value
    return tensors
