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
from mvar.evaluation.intervals import NORMAL, Value, around, share, student
from mvar.evaluation.manifold import overlap
from mvar.evaluation.scores import inception_score, kid

NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5  # k of precision and recall, and of density and coverage, as in their papers
SUBSETS, SUBSET_SIZE = 100, 1000  # of the kernel distance
CLASS_SUBSETS = 10  # for each class
PARTS = 10  # of the Inception score
ROUNDS = 40  # of the bootstrap
PAIR_ROUNDS = 10  # where samples are reconstructions of the reference, image by image

# What a report says about them.
PROTOCOL = {
    "precision_recall_k": NEIGHBOURS,
    "density_coverage_k": DENSITY_NEIGHBOURS,
    "kernel_subsets": f"{SUBSETS} of at most {SUBSET_SIZE}, of a class {CLASS_SUBSETS}",
    "inception_score_parts": PARTS,
    "bootstrap_rounds": f"{ROUNDS}, of pairs {PAIR_ROUNDS}",
}
# The kernel distance's name by that of the Frechet distance, which has an s before it for spatial features. FID and KID
# mean Inception's features alone.
KERNEL = {"FID": "KID", "FD-EffNetLite0": "KD-EffNetLite0"}


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
    ours: Features, reference: Reference, distance: str, seed: int, resampled: Literal["none", "samples", "pairs"]
) -> dict[str, Value]:
    """Every measure that these features allow.

    Args:
        distance: what the Frechet distance is called in these features, a key of `KERNEL`.
        seed: of subsets, of the order for the Inception score, and of the bootstrap.
        resampled: for the intervals of Frechet distances: samples, or pairs, where each sample is a reconstruction of
            the reference's image at the same index.
    """
    real = reference.features

    def frechet(features_NF: Tensor, target: Gaussian, kind: Literal["pooled_NF", "spatial_NS"]) -> Value:
        value, low, high = frechet_distance(fit(features_NF), target), None, None
        if resampled == "pairs":
            low, high = bootstrap_pairs(features_NF, getattr(real, kind), PAIR_ROUNDS, seed)
        elif resampled == "samples":
            low, high = bootstrap(features_NF, target, ROUNDS, seed)
        return Value(value=value, low=low, high=high)

    found = {distance: frechet(ours.pooled_NF, reference.pooled, "pooled_NF")}
    if ours.spatial_NS is not None and reference.spatial is not None:
        found[f"s{distance}"] = frechet(ours.spatial_NS, reference.spatial, "spatial_NS")
    if ours.probabilities_NK is not None:
        order_N = torch.randperm(len(ours.probabilities_NK), generator=torch.Generator().manual_seed(seed))
        parts = min(PARTS, len(order_N))
        mean, deviation = inception_score(ours.probabilities_NK[order_N], parts)
        error = deviation / math.sqrt(max(1, parts - 1))  # the deviation is not corrected for their number
        found["IS"] = around(mean, student(max(5, parts)) * error, "higher")
    if real is not None:
        found |= _against_images(ours.pooled_NF, real.pooled_NF, KERNEL[distance], seed)
    return found


def measure_classes(
    ours: Features,
    labels_N: Tensor,
    real: Features,
    real_labels_M: Tensor,
    classes: Sequence[str],
    distance: str,
    seed: int,
) -> list[dict[str, Any]]:
    """For each class its image counts and, where they suffice, kernel distance, precision, recall, density, coverage.

    A class has few images: the kernel distance is unbiased for few, a Frechet distance is not.
    """
    rows = []
    for label, name in enumerate(classes):
        fake_nF, real_mF = ours.pooled_NF[labels_N == label], real.pooled_NF[real_labels_M == label]
        row: dict[str, Any] = {"class": name, "samples": len(fake_nF), "real": len(real_mF)}
        if min(len(fake_nF), len(real_mF)) > DENSITY_NEIGHBOURS:
            row[KERNEL[distance]] = kid(real_mF, fake_nF, CLASS_SUBSETS, SUBSET_SIZE, seed).mean
            row |= overlap(real_mF, fake_nF, NEIGHBOURS, DENSITY_NEIGHBOURS)._asdict()
        rows.append(row)
    return rows


def _against_images(fake_NF: Tensor, real_MF: Tensor, kernel: str, seed: int) -> dict[str, Value]:
    """The measures that need the features of single real images."""
    k = min(len(fake_NF), len(real_MF))
    distance = kid(real_MF, fake_NF, SUBSETS, SUBSET_SIZE, seed)
    found = {kernel: Value(value=distance.mean)}
    if distance.subset_size < k:  # else every subset is the same
        # Subsets share images, the more the larger they are, and so differ less than independent sets would.
        error = distance.deviation / math.sqrt(k / distance.subset_size - 1)
        found[kernel] = around(distance.mean, NORMAL * error, "lower")
    if k > DENSITY_NEIGHBOURS:
        both = overlap(real_MF, fake_NF, NEIGHBOURS, DENSITY_NEIGHBOURS)
        found["precision"] = share(both.precision, len(fake_NF))
        found["recall"] = share(both.recall, k)  # a share of the real images, but as few samples decide it
        found["density"] = Value(value=both.density, better="higher")
        found["coverage"] = share(both.coverage, k)
    return found
