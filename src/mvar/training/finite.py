"""Stopping a run before an update that would spoil the weights."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mvar.training.run import checkpoints
from mvar.training.run.checkpoints import Checkpoints
from mvar.training.task import Task

LEAST_SCALE = 2.0**-14  # of the float16 loss; if gradients still overflow below it, they are not finite at all
NAMED_IMAGES = 8  # in a message


class Numbers(NamedTuple):
    """The loss and the norms of the gradients of a step, by name."""

    step: int
    values: Mapping[str, Tensor]
    ready: torch.cuda.Event | None = None  # after which `values`, copies on the CPU, may be read


class FiniteCheck:
    """Raises FloatingPointError for a step whose loss or gradients are not finite; its update is not applied.

    On CUDA the host does not wait for the numbers: the optimizer itself leaves such an update out, and they are read
    while the GPU computes the next step. All ranks raise together, since loss and norms are means over them.

    Attributes:
        late: whether numbers are read a step later.
    """

    def __init__(self, task: Task, saved: Checkpoints, scaler: torch.amp.GradScaler) -> None:
        self.task, self.saved, self.scaler = task, saved, scaler
        self.late = task.device.type == "cuda" and not scaler.is_enabled()  # a scaler has such an optimizer by itself
        self._open: Numbers | None = None

    def before_update(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Check the step from which the optimizer is about to update, or on CUDA the step before it."""
        if self.scaler.is_enabled() and self.scaler.get_scale() >= LEAST_SCALE:
            values = {"loss": values["loss"]}  # gradients beyond float16 only make the scaler skip the update
        if not self.late:
            self._check(Numbers(step, values))
            return
        numbers = torch.stack([value.float() for value in values.values()])
        self.task.optimizer.found_inf = (~numbers.isfinite().all()).float()  # type: ignore[attr-defined]
        ready = None
        if numbers.is_cuda:
            copies = torch.empty_like(numbers, device="cpu", pin_memory=True).copy_(numbers, non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        else:
            copies = numbers
        self.settle()
        self._open = Numbers(step, dict(zip(values, copies.unbind(), strict=True)), ready)

    def settle(self) -> None:
        """Check what has not been read yet; before anything is written to files."""
        last, self._open = self._open, None
        if last is not None:
            if last.ready is not None:
                last.ready.synchronize()
            self._check(last)

    def _check(self, numbers: Numbers) -> None:
        found = {name: float(value) for name, value in numbers.values.items()}
        bad = next((name for name, value in found.items() if not math.isfinite(value)), None)
        if bad is None:
            return
        self.saved.wait()
        names = [name for images in self.task.ranks.gather(self.task.loader.names(numbers.step)) for name in images]
        shown = ", ".join(names[:NAMED_IMAGES])
        if len(names) > NAMED_IMAGES:
            shown += f" and {len(names) - NAMED_IMAGES} more"
        done = checkpoints.complete(self.saved.folder.parent)
        fix = f"resume from the checkpoint of step {done[0].step}" if done else "start again"
        raise FloatingPointError(
            f"{bad} = {found[bad]} at step {numbers.step + 1}, images {shown}: stopped before the update; "
            f"{fix}, with a lower base_lr or grad_clip, or without these images"
        )
