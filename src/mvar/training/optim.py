"""Optimizer groups, the schedules of learning rate and weight decay, and the precision of products.

Source: the recipe of VAR (Tian et al. 2024, section 4 and its training code's published settings).
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn

from mvar.checkpoint.placement import find_dtype
from mvar.training.config import RunConfig


def lr_factor(step: float, steps: float, warmup: float, end: float) -> float:
    """The learning rate of update `step` (from 0) as a share of the peak.

    Linear warm-up from 0.005 over the first `warmup` share of the steps, flat for 5 % of the rest,
    then linear to `end` at the last step.
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
    """AdamW over every trainable parameter, in a group with and a group without weight decay.

    Args:
        module: the model; parameters that need no gradient are left out.
        config: learning rate and betas.
        decays: whether the parameter of this name is decayed.

    Raises:
        RuntimeError: a parameter is in no group or in both.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in trainable.items():
        groups[decays(name, parameter)].append(parameter)
    grouped = [id(p) for group in groups.values() for p in group]
    if sorted(grouped) != sorted(map(id, trainable.values())):
        raise RuntimeError("optimizer groups do not cover every trainable parameter exactly once")
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
    """Set learning rate and weight decay of update `step` of so many; returns the learning rate.

    A group's "lr_share" is its rate as a share of the others'.
    """
    lr = config.peak_lr * lr_factor(step, steps, config.warmup, config.lr_end)
    decay = weight_decay_at(step, steps, config.weight_decay, config.weight_decay_end)
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)
        group["weight_decay"] = decay if group["decay"] else 0.0
    return lr


def reduced(dtype: str | None, device: torch.device) -> torch.dtype | None:
    """The dtype of products below float32: as asked, else what the processor is quick at; None for float32."""
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(dtype or find_dtype(None, device))


def autocast(dtype: str | None, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """A context in which matrix products run in this dtype, see `reduced`."""
    chosen = reduced(dtype, device)
    # Each weight is used about once a step, so that keeping its copy in the cache would only take memory.
    return partial(torch.autocast, device.type, chosen, enabled=chosen is not None, cache_enabled=False)
