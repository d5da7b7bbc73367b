"""All measures of one set of features against another, by name.

Shapes: N images of the samples, M real ones.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mvar.evaluation.collect import Features
from mvar.evaluation.frechet import Gaussian, bootstrap, bootstrap_pairs, fit, frechet_distance
from mvar.evaluation.inception_score import inception_score
from mvar.evaluation.intervals import NORMAL, around, reach, share
from mvar.evaluation.kernel import kid
from mvar.evaluation.manifold import overlap
from mvar.evaluation.report import Value

NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5  # k of precision and recall, and of density and coverage: their papers'
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance
CLASS_SUBSETS = 10  # of each class's
PARTS = 10  # of the Inception score
ROUNDS = 40  # of the bootstrap
PAIR_ROUNDS = 10  # where samples are reconstructions of the reference, each beside its image

# What a report says about them.
PROTOCOL = {
    "precision_recall_k": NEIGHBOURS,
    "density_coverage_k": DENSITY_NEIGHBOURS,
    "kernel_subsets": f"{SUBSETS} of at most {SUBSET_SIZE}, of a class {CLASS_SUBSETS}",
    "inception_score_parts": PARTS,
    "bootstrap_rounds": f"{ROUNDS}, of pairs {PAIR_ROUNDS}",
}


class DistanceNames(NamedTuple):
    """Names of the distances in one network's features: FID means Inception's alone."""

    frechet: str  # of spatial features with an s before it
    kernel: str


NAMES = {
    "FID": DistanceNames("FID", "KID"),
    "FD-EffNetLite0": DistanceNames("FD-EffNetLite0", "KD-EffNetLite0"),
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


def measure(
    ours: Features, reference: Reference, distance: str, seed: int, redraw: Literal["none", "samples", "pairs"]
) -> dict[str, Value]:
    """Every measure that these features allow.

    Args:
        ours: of the samples.
        reference: of real images.
        distance: what the Frechet distance is called in these features, a key of `NAMES`.
        seed: of subsets, of the order for the Inception score, and of the bootstrap.
        redraw: what is drawn again for the intervals of Frechet distances, which takes longer than the rest: samples,
            or, where each is a reconstruction of the reference's image at its place and that gives `pooled` and
            `spatial`, pairs of both.
    """
    names, real = NAMES[distance], reference.features

    def frechet(features_NF: Tensor, target: Gaussian, kind: Literal["pooled_NF", "spatial_NS"]) -> Value:
        low, high = None, None
        if redraw == "pairs":
            low, high = bootstrap_pairs(features_NF, getattr(real, kind), PAIR_ROUNDS, seed)
        elif redraw == "samples":
            low, high = bootstrap(features_NF, target, ROUNDS, seed)
        return Value(value=frechet_distance(fit(features_NF), target), low=low, high=high)

    found = {names.frechet: frechet(ours.pooled_NF, reference.pooled, "pooled_NF")}
    if ours.spatial_NS is not None and reference.spatial is not None:
        found[f"s{names.frechet}"] = frechet(ours.spatial_NS, reference.spatial, "spatial_NS")
    if ours.probabilities_NK is not None:
        order_N = torch.randperm(len(ours.probabilities_NK), generator=torch.Generator().manual_seed(seed))
        parts = min(PARTS, len(order_N))
        mean, deviation = inception_score(ours.probabilities_NK[order_N], parts)
        error = deviation / math.sqrt(max(1, parts - 1))  # the deviation is of the parts as they are
        found["IS"] = around(mean, reach(max(5, parts)) * error, "higher")
    if real is not None:
        found |= _images(ours.pooled_NF, real.pooled_NF, names.kernel, seed)
    return found


def measure_classes(
    ours: Features,
    labels_N: Tensor,
    real: Features,
    real_labels_M: Tensor,
    classes: Sequence[str],
    kernel: str,
    seed: int,
) -> list[dict[str, Any]]:
    """For each class how many images there are, and of enough: kernel distance, precision, recall, density, coverage.

    A class has few images: the kernel distance is right for few, a Frechet distance is not.
    """
    rows = []
    for label, name in enumerate(classes):
        fake_nF, real_mF = ours.pooled_NF[labels_N == label], real.pooled_NF[real_labels_M == label]
        row: dict[str, Any] = {"class": name, "samples": len(fake_nF), "real": len(real_mF)}
        if min(len(fake_nF), len(real_mF)) > DENSITY_NEIGHBOURS:
            distance = kid(real_mF, fake_nF, CLASS_SUBSETS, SUBSET_SIZE, seed).mean
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
        found[kernel] = around(distance.mean, NORMAL * error, "lower")
    if k > DENSITY_NEIGHBOURS:
        both = overlap(real_MF, fake_NF, NEIGHBOURS, DENSITY_NEIGHBOURS)
        found["precision"] = share(both.precision, len(fake_NF))
        found["recall"] = share(both.recall, k)  # a share of the real images, which as few samples decide
        found["density"] = Value(value=both.density, better="higher")
        found["coverage"] = share(both.coverage, k)
    return found
