"""Optimizer groups, the schedules of learning rate and weight decay, the average of the weights, and mixed precision.

Sources: the recipe of VAR (Tian et al. 2024, section 4 and its published training code); averaging: Polyak & Juditsky
1992, with the warm-up of its decay that is customary for generative models.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mvar.checkpoint.placement import find_dtype
from mvar.training.config import RunConfig


def lr_factor(step: float, steps: float, warmup: float, end: float) -> float:
    """The learning rate of update `step` (from 0) as a fraction of the peak: a linear warm-up from 0.005 over the first
    `warmup` of the steps, flat for 5 % of the rest, then linear to `end` at the last step.
    """
    warm = round(warmup * steps)
    if step < warm:
        return 0.005 + 0.995 * step / warm
    u = (step - warm) / max(steps - 1 - warm, 1)
    return 1.0 if u < 0.05 else end + (1 - end) * (1 - u) / 0.95


def weight_decay_at(step: float, steps: float, start: float, end: float) -> float:
    """Weight decay of update `step`: a cosine from start to end."""
    return end + (start - end) * (1 + math.cos(math.pi * step / max(steps - 1, 1))) / 2


def build_optimizer(
    module: nn.Module, config: RunConfig, decays: Callable[[str, nn.Parameter], bool]
) -> torch.optim.AdamW:
    """AdamW over every trainable parameter: one group with weight decay, one without, as `decays(name, p)` says."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[decays(name, parameter)].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "decay": True, "weight_decay": config.weight_decay},
            {"params": groups[False], "decay": False, "weight_decay": 0.0},
        ],
        lr=config.peak_lr,
        betas=config.betas,
        fused=True,  # one pass over each parameter, without temporary copies
    )


def set_schedule(optimizer: torch.optim.Optimizer, step: float, steps: float, config: RunConfig) -> float:
    """Set learning rate and weight decay of update `step` out of `steps`; returns the learning rate.

    A group's "lr_share" multiplies its learning rate.
    """
    lr = config.peak_lr * lr_factor(step, steps, config.warmup, config.lr_end)
    decay = weight_decay_at(step, steps, config.weight_decay, config.weight_decay_end)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)
        group["weight_decay"] = decay if group["decay"] else 0.0
    return lr


def low_precision(dtype: str | None, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products where it is not float32: the one given, else what the processor is fast at."""
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(dtype or find_dtype(None, device))


def autocast(dtype: str | None, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A context in which matrix products run in this dtype, see `low_precision`."""
    chosen = low_precision(dtype, device)
    if chosen is None:
        return nullcontext
    # Each weight is used about once a step, so caching its cast would only take memory.
    return partial(torch.autocast, device.type, chosen, cache_enabled=False)


class WeightAverage:
    """An exponential moving average of a module's trainable parameters: it samples and reconstructs better than the
    last step's weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """`decay` is the weight of the past at each update, lower in the first steps; 0 keeps no average."""
        self.decay = decay
        self._live = {name: p for name, p in module.named_parameters() if p.requires_grad} if decay else {}
        self._average = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after update `step` (from 0); the decay is at most (1 + step) / (10 + step)."""
        if self._live:
            weight = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self._average.values()), list(self._live.values()), weight)

    @torch.no_grad()
    def restart(self, name: str, rows: Tensor) -> None:
        """Forget the past of these rows of a parameter."""
        if name in self._live:
            self._average[name][rows] = self._live[name][rows]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Swap the average into the module for the duration of the context."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def take(self) -> None:
        """Put the average into the module for good."""
        self._swap()
        self._live, self._average = {}, {}

    @torch.no_grad()
    def _swap(self) -> None:
        for name, live in self._live.items():
            kept = live.detach().clone()
            live.copy_(self._average[name])
            self._average[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name, live; a checkpoint fills them."""
        return self._average
