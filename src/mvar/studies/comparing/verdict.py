"""Which variants of a study differ from its baseline by more than chance explains."""

import math
from collections.abc import Sequence
from statistics import mean

from mvar.studies.comparing.records import LOSS, Row
from mvar.studies.distance import NAME

JUDGED = {LOSS: "loss", "distance": NAME}


def verdict(rows: Sequence[Row], baseline: str) -> list[str]:
    """Which variants have a smaller loss or distance than the baseline, and which a larger one, on every data set.

    A difference counts if it is larger than twice the standard deviation between seeds. Two or three seeds give a poor
    estimate of it, so it is pooled over all variants of a data set. Of distances, the 90 % intervals for the samples of
    all seeds must not overlap either.
    """
    if any(row.seeds == 1 for row in rows):
        return ["One seed: no verdict, as nothing says how much another seed would change."]
    sentences = []
    for at in dict.fromkeys(row.at for row in rows):
        for measure, label in JUDGED.items():
            signs: dict[str, set[int]] = {}
            for data in dict.fromkeys(row.data for row in rows):
                for variant, sign in _signs([row for row in rows if row[1:3] == (data, at)], baseline, measure).items():
                    signs.setdefault(variant, set()).add(sign)
            named = {
                "smaller": [name for name, found in signs.items() if found == {-1}],
                "larger": [name for name, found in signs.items() if found == {1}],
                "not clearly different, or not alike on all data": [
                    name for name, found in signs.items() if found not in ({-1}, {1})
                ],
            }
            parts = "; ".join(f"{what}: {', '.join(names) if names else 'none'}" for what, names in named.items())
            sentences.append(f"At {at}, {label} compared with {baseline}'s: {parts}.")
    return sentences


def _signs(rows: Sequence[Row], baseline: str, measure: str) -> dict[str, int]:
    """For each variant but the baseline: -1 smaller, 1 larger, 0 not clearly different."""
    deviation = math.sqrt(mean(row.measures[measure].deviation ** 2 for row in rows))
    (theirs,) = (row for row in rows if row.variant == baseline)
    signs = {}
    for row in rows:
        apart = row.measures[measure].mean - theirs.measures[measure].mean
        sampling = _half_width(row) + _half_width(theirs) if measure == "distance" else 0.0
        signs[row.variant] = int(math.copysign(1, apart)) if abs(apart) > max(2 * deviation, sampling) else 0
    del signs[baseline]
    return signs


def _half_width(row: Row) -> float:
    """Of the 90 % interval that the samples of all seeds leave for the mean distance: seeds draw independent ones."""
    low, high = row.interval or (0.0, 0.0)
    return (high - low) / 2 / math.sqrt(row.seeds)
