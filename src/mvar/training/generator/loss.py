"""The generator's loss on token maps, and which maps it is taken on.

Shapes: B images, L tokens of all scales, l tokens of the scales in use, Z latent channels, U random numbers an image.
Source: VAR (Tian et al. 2024), section 3.2; progressive training as in its published training code's option.
"""

import torch
from torch import Tensor, nn

from mvar.generator.network import Generator
from mvar.scales import ScaleSchedule

NEWEST_WEIGHT = 0.01  # of a scale's tokens when progressive training takes it in


class GeneratorLoss(nn.Module):
    """A generator as its loss: what is wrapped to train on several devices, as `forward` holds all use of weights."""

    def __init__(self, generator: Generator, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.generator, self.label_smoothing = generator, label_smoothing

    def forward(
        self, labels_B: Tensor, inputs_BlZ: Tensor, tokens_Bl: Tensor, noise_BU: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss of each token in nats, float32 (B, l), and whether its likeliest code is the right one, bool (B, l).

        Labels are smoothed, and noise is used, while the generator is in training mode. Arguments and errors are those
        of `Generator.token_losses`.
        """
        smoothing = self.label_smoothing if self.generator.training else 0.0
        return self.generator.token_losses(labels_B, inputs_BlZ, tokens_Bl, noise_BU, smoothing)


def scales_in_use(
    step: float, steps: float, progressive: float, first: int, schedule: ScaleSchedule
) -> tuple[int, Tensor]:
    """Progressive training: how many scales step `step` (from 0) trains, and each token's share of the loss.

    The first n = round(progressive * steps) steps are cut into K - f equal stages, f = min(first, K - 1). Stage j,
    from 0, trains scales 0 to f + j. In stage 0 all their tokens weigh 1; in a later one those of scale f + j weigh
    0.01 + 0.99 t, where t goes from 0 at the stage's start to 1 at its end. From step n on all scales are trained and
    all tokens weigh 1. The loss is the weighted mean over the tokens in use, so that it goes on without a leap when a
    scale comes in.

    Args:
        step: updates done before this one.
        steps: of the whole run.
        progressive: share of the run that the stages take; 0 trains all scales from the start.
        first: the finest scale of stage 0, at least 1.
        schedule: all K scales.

    Returns:
        The number of scales, and float32 (l,) that sums to 1 over their tokens.
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
    """Where the stages of progressive training begin, as shares of the run; see `scales_in_use`."""
    stages = len(schedule) - min(first, len(schedule) - 1)
    return [progressive * j / stages for j in range(stages)]
