"""Which variants of a study differ from its baseline by more than chance explains."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import NamedTuple

from mvar.studies.comparing.records import LOSS, MINUTES, STEPS, Row
from mvar.text import listed

SURE = 0.95  # of a comparison on one data set
SAID = {-1: "smaller", 1: "larger", 0: "not clearly different", None: "not finite"}


class Difference(NamedTuple):
    """A variant's mean minus the baseline's, and what it comes to: a key of `SAID`."""

    mean: float
    sign: int | None


def verdict(rows: Sequence[Row], baseline: str) -> list[str]:
    """Which variants have a smaller loss or distance than the baseline, and which a larger one; by how much.

    Data sets with a single seed get none, as nothing says how much another seed would change.

    A seed decides the initialisation, the order of images and the noise of samples, so that variants are compared seed
    by seed. A difference counts if the t distribution gives less than 5 % to one as large by chance. Its variance is
    that of a two-way layout, pooled over the variants of a data set, as two or three seeds alone give a poor estimate:
    what is left of each value without its variant's mean and its seed's, which is taken to be alike in all variants. At
    equal minutes a difference must also exceed
    what the error of times and the rounding of steps would change.
    """
    seeds = {row.data: row.seeds for row in rows}
    data_sets = [data for data, n in seeds.items() if n > 1]
    sentences = [f"One seed on {data}: no verdict." for data, n in seeds.items() if n == 1]
    if not data_sets:
        return sentences
    alone = f"On {data_sets[0]}, compared" if len(data_sets) == 1 else "Compared"
    labels = {LOSS: ("the loss", "z.3f"), "distance": (rows[0].distance, "z.0f")}
    labels = {measure: label for measure, label in labels.items() if measure in rows[0].measures}
    for at in dict.fromkeys(row.at for row in rows):
        parts = []
        for measure, (label, form) in labels.items():
            found = [differences(rows, data, at, baseline, measure) for data in data_sets]
            variants = {name: dict(zip(data_sets, (own[name] for own in found), strict=True)) for name in found[0]}
            parts.append(f"{label} is {_said(variants, form)}")
        sentences.append(f"{alone} with {baseline} at {at}, {'; '.join(parts)}.")
    return sentences


def differences(rows: Sequence[Row], data: str, at: str, baseline: str, measure: str) -> dict[str, Difference]:
    """Of every variant but the baseline, on one data set."""
    from scipy import stats

    own = {row.variant: row for row in rows if (row.data, row.at) == (data, at)}
    theirs = own.pop(baseline)
    values = [row.measures[measure].values for row in (theirs, *own.values())]
    error, freedom = _of_chance([its for its in values if all(map(math.isfinite, its))])
    limit = error * stats.t.ppf((1 + SURE) / 2, freedom)
    found = {}
    for name, row in own.items():
        difference = row.measures[measure].mean - theirs.measures[measure].mean
        least = limit + sum(_of_minutes(rows, one, measure) for one in (row, theirs) if at == MINUTES)
        sign = int(math.copysign(1, difference)) if abs(difference) > least else 0
        found[name] = Difference(difference, sign if math.isfinite(difference) else None)
    return found


def _of_chance(values: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Standard error of the difference of two variants' means, and its degrees of freedom; nan for a single variant."""
    import numpy as np

    if len(values) < 2:
        return math.nan, 1
    values_VS = np.array(values)  # of variants and seeds
    V, S = values_VS.shape
    left_VS = values_VS - values_VS.mean(1, keepdims=True) - values_VS.mean(0) + values_VS.mean()
    freedom = (V - 1) * (S - 1)
    return math.sqrt(2 * np.square(left_VS).sum() / freedom / S), freedom


def _of_minutes(rows: Sequence[Row], row: Row, measure: str) -> float:
    """What the error of its minutes changes in a variant's mean, by its slope over the logarithm of steps.

    One that makes as many steps in both cases is taken to be as steep as the steepest of the others.
    """
    before = {other.variant: other for other in rows if (other.data, other.at) == (row.data, STEPS)}
    slopes = {}
    for after in (other for other in rows if (other.data, other.at) == (row.data, MINUTES)):
        if longer := math.log(after.steps / before[after.variant].steps):
            change = after.measures[measure].mean - before[after.variant].measures[measure].mean
            slopes[after.variant] = abs(change / longer)
    return slopes.get(row.variant, max(slopes.values(), default=0.0)) * row.error


def _said(variants: Mapping[str, Mapping[str, Difference]], form: str) -> str:
    """What the differences come to that the variants have on each data set."""
    kinds: dict[str, list[str]] = {said: [] for said in SAID.values()}
    for variant, found in sorted(variants.items(), key=lambda item: mean(d.mean for d in item[1].values())):
        signs = {d.sign for d in found.values()}
        kind = SAID[next(iter(signs))]
        if len(signs) > 1:
            kind = " and ".join(f"{SAID[d.sign]} on {data}" for data, d in found.items() if d.sign != 0)
        sizes = f" ({', '.join(f'{d.mean:+{form}}' for d in found.values())})" if signs != {0} else ""
        kinds.setdefault(kind, []).append(f"*{variant}*{sizes}")
    if len(kinds[SAID[0]]) == len(variants):
        return f"{SAID[0]} for any variant"
    kinds[SAID[0]] = kinds.pop(SAID[0])  # last
    return ", ".join(f"{kind} for {listed(names)}" for kind, names in kinds.items() if names)
