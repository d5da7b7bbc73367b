"""A measure and its 90 % interval: what other samples would change."""

import math
from dataclasses import dataclass

from scipy.special import stdtrit
from torch import Tensor

NORMAL = 1.645  # standard deviations to either side of a mean, between which 90 % of a normal distribution lie


@dataclass(frozen=True, kw_only=True)
class Value:
    """One measure of the samples against the reference."""

    value: float
    low: float | None = None  # of the 90 % interval; None where it is not known
    high: float | None = None
    floor: float | None = None  # the same measure of other real images in place of the samples
    better: str = "lower"  # or "higher"


def student(repetitions: int) -> float:
    """As `NORMAL`, where the deviation itself is estimated from this many repetitions: Student's t."""
    return float(stdtrit(repetitions - 1, 0.95))


def share(value: float, images: int) -> Value:
    """A share of this many images, with Wilson's interval, which stays between 0 and 1."""
    square = NORMAL**2 / images
    centre = (value + square / 2) / (1 + square)
    apart = math.sqrt(value * (1 - value) * square + square**2 / 4) / (1 + square)
    return Value(value=value, low=centre - apart, high=centre + apart, better="higher")


def mean(values_N: Tensor) -> Value:
    """The mean of a measure of single images for which higher is better."""
    values_N = values_N.double()
    error = float(values_N.std()) / math.sqrt(len(values_N)) if len(values_N) > 1 else 0.0
    return around(float(values_N.mean()), NORMAL * error, "higher")


def around(value: float, apart: float, better: str) -> Value:
    """A value with a symmetric interval."""
    return Value(value=value, low=value - apart, high=value + apart, better=better)
