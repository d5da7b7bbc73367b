"""KID, the squared maximum mean discrepancy between two sets of features, and the Inception score of one.

Shapes: N real images, M samples, S images of a subset, n of a part, F features, K classes.
Sources: Binkowski et al. 2018, section 4 (KID); Salimans et al. 2016, section 4 (Inception score).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mvar.evaluation.frechet import check_features


class KID(NamedTuple):
    """Over subsets of both sets."""

    mean: float
    deviation: float  # of one subset's estimate, divided by the number of subsets
    subset_size: int


def kid(real_NF: Tensor, fake_MF: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KID:
    """The estimate with the kernel (x.y / F + 1)^3, averaged over random subsets; unbiased, so it can be below zero.

    A subset is drawn from each set without replacement. Of equal and small sets there is only one subset. Raises
    ValueError for features that are not finite, of two networks, or of fewer than two images.
    """
    check_two_sets(real_NF, fake_MF, 2)
    S = min(subset_size, len(real_NF), len(fake_MF))
    if S == len(real_NF) == len(fake_MF):
        subsets = 1
    rng = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(subsets):
        drawn = (x[torch.randperm(len(x), generator=rng)[:S]].double() for x in (real_NF, fake_MF))
        estimates.append(_squared_discrepancy(*drawn))
    values = torch.stack(estimates)
    return KID(float(values.mean()), float(values.std(correction=0)), S)


def _squared_discrepancy(a_SF: Tensor, b_SF: Tensor) -> Tensor:
    """The unbiased estimate from two sets of S images: an image is not paired with itself."""
    S = len(a_SF)
    within = sum(_kernel(x, x).fill_diagonal_(0).sum() / (S * (S - 1)) for x in (a_SF, b_SF))
    return within - 2 * _kernel(a_SF, b_SF).mean()


def _kernel(a_SF: Tensor, b_SF: Tensor) -> Tensor:
    return (a_SF @ b_SF.T / a_SF.shape[1] + 1) ** 3


def check_two_sets(real_NF: Tensor, fake_MF: Tensor, least: int) -> None:
    """Raises ValueError unless both sets are (N, F) and finite, of one F, and of at least `least` images."""
    check_features(real_NF, "features of real images", least)
    check_features(fake_MF, "features of samples", least)
    if real_NF.shape[1] != fake_MF.shape[1]:
        raise ValueError(f"the sets have {real_NF.shape[1]} and {fake_MF.shape[1]} features: use one network for both")


def inception_score(probabilities_NK: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp(mean over images of KL(p(class | image) || mean p)) of each part of the images: mean and standard deviation.

    Parts are consecutive images: shuffle samples that are in the order of their classes first. The deviation is divided
    by the number of parts, as in published figures.

    Args:
        probabilities_NK: the classifier's softmax.
        splits: parts, at most as many as images.
    """
    N, scores = len(probabilities_NK), []
    for i in range(splits):
        p_nK = probabilities_NK[i * N // splits : (i + 1) * N // splits].double()
        divergence_n = (torch.xlogy(p_nK, p_nK) - torch.xlogy(p_nK, p_nK.mean(0))).sum(1)
        scores.append(divergence_n.mean().exp())
    values = torch.stack(scores)
    return float(values.mean()), float(values.std(correction=0))
