"""KID: the squared maximum mean discrepancy between two sets of features, which is unbiased even for few images.

Shapes: N real images, M samples, S images of a subset, F features.
Source: Binkowski et al. 2018, section 4.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mvar.evaluation.checks import check_two_sets
from mvar.settings import is_integer


class KID(NamedTuple):
    """Over subsets of both sets."""

    mean: float
    deviation: float  # of one subset's estimate; of the subsets as they are, not divided by their number less one
    subset_size: int  # as it was


def kid(real_NF: Tensor, fake_MF: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KID:
    """The unbiased estimate with the kernel (x.y / F + 1)^3, averaged over random subsets; it can be below zero.

    A subset is drawn from each set without replacement. Where a set has fewer than `subset_size` images, that many are
    taken: of equal and small sets, every subset is then the whole set, and there is only one.

    Args:
        real_NF: features of at least two images.
        fake_MF: features of the same network, of at least two images.
        subsets: how many are drawn, at least 1.
        subset_size: images of a subset, at least 2.
        seed: the same draws the same subsets.

    Raises:
        ValueError: bad features, fewer than two images, or a number out of range.
    """
    for name, value, least in (("subsets", subsets, 1), ("subset_size", subset_size, 2)):
        if not is_integer(value) or value < least:
            raise ValueError(f"{name} = {value!r}: must be an integer of at least {least}")
    check_two_sets(real_NF, fake_MF, 2, "KID")
    S = min(subset_size, len(real_NF), len(fake_MF))
    if S == len(real_NF) == len(fake_MF):
        subsets = 1  # all are the same
    random = torch.Generator().manual_seed(seed)
    estimates = []
    for _ in range(subsets):
        drawn = (x[torch.randperm(len(x), generator=random)[:S]].double() for x in (real_NF, fake_MF))
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
