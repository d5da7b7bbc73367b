"""Which variants of a study differ from its baseline by more than chance explains."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean

from mvar.studies.comparing.records import LOSS, Row
from mvar.studies.distance import NAME

JUDGED = {LOSS: "the loss", "distance": NAME}
SAID = {-1: "smaller", 1: "larger", 0: "not clearly different"}


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
        parts = []
        for measure, label in JUDGED.items():
            signs: dict[str, dict[str, int]] = {}
            for data in dict.fromkeys(row.data for row in rows):
                for variant, sign in _signs([row for row in rows if row[1:3] == (data, at)], baseline, measure).items():
                    signs.setdefault(variant, {})[data] = sign
            parts.append(f"{label} is {_said(signs)}")
        sentences.append(f"Compared with {baseline} at {at}, {'; '.join(parts)}.")
    return sentences


def _said(signs: Mapping[str, Mapping[str, int]]) -> str:
    """What the signs come to that the variants have on each data set."""
    kinds: dict[str, list[str]] = {said: [] for said in SAID.values()}
    for variant, found in signs.items():
        kind = SAID[next(iter(found.values()))]
        if len(set(found.values())) > 1:
            kind = " and ".join(f"{SAID[sign]} on {data}" for data, sign in found.items() if sign)
        kinds.setdefault(kind, []).append(f"*{variant}*")
    if len(kinds[SAID[0]]) == len(signs):
        return f"{SAID[0]} for any variant"
    listed = {
        kind: " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) for kind, names in kinds.items() if names
    }
    return ", ".join(f"{kind} for {names}" for kind, names in listed.items())


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
