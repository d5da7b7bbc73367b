"""The generator's loss on token maps, which scales it is taken on, and torch.compile for it.

Shapes: B images, L tokens of all scales, l tokens of the scales in use, Z latent channels, U random numbers per image.
Source: VAR (Tian et al. 2024), section 3.2; progressive training as the option of its published training code.
"""

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mvar.generator.network import Generator, called
from mvar.ops.dispatch import check_kernels, find_kernels, mode
from mvar.ops.mamba import mamba_both_ways, scan
from mvar.scales import ScaleSchedule

NEWEST_WEIGHT = 0.01  # of the tokens of a scale that progressive training has just added


class GeneratorLoss(nn.Module):
    """A generator as its loss: the module to wrap for several ranks, since `forward` covers all use of weights."""

    def __init__(self, generator: Generator, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.generator, self.label_smoothing = generator, label_smoothing

    def forward(
        self, labels_B: Tensor, inputs_BlZ: Tensor, tokens_Bl: Tensor, noise_BU: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss of each token in nats, float32 (B, l), and whether its most likely code is the right one, bool (B, l).

        Labels are smoothed in training mode only. Arguments and errors are those of `Generator.token_losses`.
        """
        smoothing = self.label_smoothing if self.generator.training else 0.0
        return self.generator.token_losses(labels_B, inputs_BlZ, tokens_Bl, noise_BU, smoothing)


# --- progressive training ---


def scales_in_use(
    step: float, steps: float, progressive: float, first: int, schedule: ScaleSchedule
) -> tuple[int, Tensor]:
    """How many scales step `step` (from 0) trains, and each token's weight in the loss, float32 (l,) that sums to 1.

    The first n = round(progressive * steps) steps are divided into K - f equal stages, f = min(first, K - 1), where
    `first` is at least 1. Stage j, from 0, trains scales 0 to f + j. In stage 0 all tokens weigh 1; in a later one
    those of scale f + j weigh 0.01 + 0.99 t, where t goes from 0 at the stage's start to 1 at its end. From step n on
    all scales are trained and all tokens weigh 1. The loss is the weighted mean over the tokens in use, so that it does
    not jump when a scale is added.
    """
    K, n = len(schedule), round(progressive * steps)
    first = min(first, K - 1)
    stages = K - first
    count, newest = K, 1.0
    if step < n:
        stage, into = divmod(step * stages, n)
        count = first + int(stage) + 1
        newest = 1.0 if stage == 0 else NEWEST_WEIGHT + (1 - NEWEST_WEIGHT) * into / n
    weights_l = torch.ones(schedule.offsets[count])
    weights_l[schedule.slice(count - 1)] = newest
    return count, weights_l / weights_l.sum()


def stage_starts(progressive: float, first: int, schedule: ScaleSchedule) -> list[float]:
    """Where the stages of progressive training begin, as fractions of the run; see `scales_in_use`."""
    stages = len(schedule) - min(first, len(schedule) - 1)
    return [progressive * j / stages for j in range(stages)]


# --- torch.compile ---


def check_compiler(device: torch.device) -> None:
    """Raise ValueError where torch.compile would find no C++ compiler, which it needs on a CPU."""
    names = [os.environ.get("CXX", ""), "g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(name) for name in names if name):
        raise ValueError("compile = True: finds no C++ compiler here; install g++, or leave compile out")


def compile_blocks(generator: Generator, backend: str | Callable[..., Any] = "inductor") -> None:
    """Run the blocks through torch.compile where there is a gradient; blocks of one kind share the result.

    The Triton kernels of a GPU are operators that the compiler knows. Where they do not run, Mamba's scan, which has a
    backward pass of its own, is left out, and so is the loop over scales of the bidirectional one, which would be
    compiled again for each. Without a gradient `mvar.ops.native` has compiled passes.
    """
    check_kernels(generator.head.weight.device)
    for answer in (mode, find_kernels):  # marked here, as decorators of torch.compiler import the whole compiler
        torch.compiler.assume_constant_result(answer)
    eager_scan, eager_both_ways = torch.compiler.disable(scan), torch.compiler.disable(mamba_both_ways)
    for block in generator.each_block():
        if block.mamba is not None:
            block.mamba.scan, block.mamba.both_ways = eager_scan, eager_both_ways
    generator.differentiated = torch.compile(called, backend=backend)
