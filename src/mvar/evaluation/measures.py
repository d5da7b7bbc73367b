"""All measures of one set of features against another, by name.

Shapes: N images of the samples, M real ones.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mvar.evaluation.collect import Features
from mvar.evaluation.frechet import Gaussian, bootstrap, fit, frechet_distance
from mvar.evaluation.inception_score import inception_score
from mvar.evaluation.kernel import kid
from mvar.evaluation.manifold import overlap
from mvar.evaluation.report import Value

NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5  # k of precision and recall, and of density and coverage: their papers'
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance
CLASS_SUBSETS = 10  # of each class's
PARTS = 10  # of the Inception score
ROUNDS = 20  # of the bootstrap
NORMAL = 1.645  # standard deviations to either side of a mean, between which 90 % of a normal distribution lie


# What a report says about them.
PROTOCOL = {
    "precision_recall_k": NEIGHBOURS,
    "density_coverage_k": DENSITY_NEIGHBOURS,
    "kernel_subsets": f"{SUBSETS} of at most {SUBSET_SIZE}",
    "inception_score_parts": PARTS,
    "bootstrap_rounds": ROUNDS,
}


class Names(NamedTuple):
    """What measures are called that belong to one network; a distance in other features is no FID."""

    frechet: str  # of spatial features with an s before it
    kernel: str


NAMES = {
    "FID": Names("FID", "KID"),
    "FD-EffNetLite0": Names("FD-EffNetLite0", "KD-EffNetLite0"),
}


class Reference(NamedTuple):
    """What samples are compared with; features only where there are images."""

    pooled: Gaussian
    spatial: Gaussian | None = None
    features: Features | None = None

    @classmethod
    def of(cls, features: Features) -> "Reference":
        """The reference that these real images make."""
        spatial = None if features.spatial_NS is None else fit(features.spatial_NS)
        return cls(fit(features.pooled_NF), spatial, features)


def measure(ours: Features, reference: Reference, distance: str, seed: int, intervals: bool = True) -> dict[str, Value]:
    """Every measure that these features allow.

    Args:
        ours: of the samples.
        reference: of real images.
        distance: what the Frechet distance is called in these features, a key of `NAMES`.
        seed: of subsets, of the order for the Inception score, and of the bootstrap.
        intervals: whether to find those of Frechet distances, which takes longer than the rest.
    """
    names = NAMES[distance]

    def frechet(features_NF: Tensor, target: Gaussian) -> Value:
        value = frechet_distance(fit(features_NF), target)
        low, high = bootstrap(features_NF, target, ROUNDS, seed) if intervals else (None, None)
        return Value(value=value, low=low, high=high)

    found = {names.frechet: frechet(ours.pooled_NF, reference.pooled)}
    if ours.spatial_NS is not None and reference.spatial is not None:
        found[f"s{names.frechet}"] = frechet(ours.spatial_NS, reference.spatial)
    if ours.probabilities_NK is not None:
        order_N = torch.randperm(len(ours.probabilities_NK), generator=torch.Generator().manual_seed(seed))
        parts = min(PARTS, len(order_N))
        mean, deviation = inception_score(ours.probabilities_NK[order_N], parts)
        found["IS"] = _around(mean, deviation / math.sqrt(parts), "higher")
    if reference.features is not None:
        found |= _images(ours.pooled_NF, reference.features.pooled_NF, names.kernel, seed)
    return found


def measure_classes(
    ours: Features, labels_N: Tensor, real: Features, real_labels_M: Tensor, classes: Sequence[str], kernel: str
) -> list[dict[str, Any]]:
    """For each class how many images there are, and of enough: kernel distance, precision, recall, density, coverage.

    A class has few images: the kernel distance is right for few, a Frechet distance is not.
    """
    rows = []
    for label, name in enumerate(classes):
        fake_nF, real_mF = ours.pooled_NF[labels_N == label], real.pooled_NF[real_labels_M == label]
        row: dict[str, Any] = {"class": name, "samples": len(fake_nF), "real": len(real_mF)}
        if min(len(fake_nF), len(real_mF)) > DENSITY_NEIGHBOURS:
            distance = kid(real_mF, fake_nF, CLASS_SUBSETS, SUBSET_SIZE).mean
            row |= {kernel: distance, **overlap(real_mF, fake_nF, NEIGHBOURS, DENSITY_NEIGHBOURS)._asdict()}
        rows.append(row)
    return rows


def _images(fake_NF: Tensor, real_MF: Tensor, kernel: str, seed: int) -> dict[str, Value]:
    """What takes the features of single real images."""
    found = {}
    k = min(len(fake_NF), len(real_MF))
    distance = kid(real_MF, fake_NF, SUBSETS, SUBSET_SIZE, seed)
    found[kernel] = Value(value=distance.mean)
    if distance.subset_size < k:  # else every subset is the whole set
        # Subsets share images, the more the larger they are, and so differ less than sets drawn anew would.
        error = distance.deviation / math.sqrt(k / distance.subset_size - 1)
        found[kernel] = _around(distance.mean, error, "lower")
    if k > DENSITY_NEIGHBOURS:
        both = overlap(real_MF, fake_NF, NEIGHBOURS, DENSITY_NEIGHBOURS)
        found["precision"] = share(both.precision, len(fake_NF))
        found["recall"] = share(both.recall, k)  # a share of the real images, which as few samples decide
        found["density"] = Value(value=both.density, better="higher")
        found["coverage"] = share(both.coverage, k)
    return found


def mean(values_N: Tensor) -> Value:
    """The mean of a measure of single images, more of which is better."""
    values_N = values_N.double()
    error = float(values_N.std()) / math.sqrt(len(values_N)) if len(values_N) > 1 else 0.0
    return _around(float(values_N.mean()), error, "higher")


def share(value: float, images: int) -> Value:
    """A share of so many images, with Wilson's interval, which stays between 0 and 1."""
    square = NORMAL**2 / images
    centre = (value + square / 2) / (1 + square)
    reach = math.sqrt(value * (1 - value) * square + square**2 / 4) / (1 + square)
    return Value(value=value, low=centre - reach, high=centre + reach, better="higher")


def _around(value: float, error: float, better: str) -> Value:
    """A value with its standard error."""
    return Value(value=value, low=value - NORMAL * error, high=value + NORMAL * error, better=better)
