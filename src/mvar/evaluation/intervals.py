"""90 % intervals of what an evaluation finds: what other samples would change."""

import math

from torch import Tensor

from mvar.evaluation.report import Value

NORMAL = 1.645  # standard deviations to either side of a mean, between which 90 % of a normal distribution lie


def reach(repetitions: int) -> float:
    """Standard deviations to either side, where the deviation itself is known from so many repetitions only.

    Student's t, by its expansion in 1 / degrees of freedom (Abramowitz & Stegun, 26.7.5): within 0.1 % from 4 of them.

    Args:
        repetitions: at least 5.
    """
    free, z = repetitions - 1, NORMAL
    first = (z**3 + z) / (4 * free)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return z + first + second + third


def share(value: float, images: int) -> Value:
    """A share of so many images, with Wilson's interval, which stays between 0 and 1."""
    square = NORMAL**2 / images
    centre = (value + square / 2) / (1 + square)
    apart = math.sqrt(value * (1 - value) * square + square**2 / 4) / (1 + square)
    return Value(value=value, low=centre - apart, high=centre + apart, better="higher")


def mean(values_N: Tensor) -> Value:
    """The mean of a measure of single images, more of which is better."""
    values_N = values_N.double()
    error = float(values_N.std()) / math.sqrt(len(values_N)) if len(values_N) > 1 else 0.0
    return around(float(values_N.mean()), NORMAL * error, "higher")


def around(value: float, apart: float, better: str) -> Value:
    """A value and as much to either side."""
    return Value(value=value, low=value - apart, high=value + apart, better=better)
