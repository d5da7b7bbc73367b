"""The Frechet distance between two sets of features.

Shapes: N images, F features.
Source: Heusel et al. 2017, equation 6.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """What the distance knows of a set."""

    mean_F: Tensor
    covariance_FF: Tensor  # unbiased


def fit(features_NF: Tensor) -> Gaussian:
    """Mean and covariance in float64.

    Raises:
        ValueError: fewer than two images, or features that are not finite.
    """
    if features_NF.ndim != 2 or len(features_NF) < 2:
        raise ValueError(f"features have shape {tuple(features_NF.shape)}: give (N, F) of at least two images")
    features_NF = features_NF.double()
    if not bool(features_NF.isfinite().all()):
        raise ValueError("features are not finite: a network or an image is damaged")
    F = features_NF.shape[1]
    return Gaussian(features_NF.mean(0), features_NF.T.cov().view(F, F))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of C_a^(1/2) C_b C_a^(1/2), which is symmetric: its
    decomposition is stable where C_a C_b has none that is real.
    """
    if a.mean_F.shape != b.mean_F.shape:
        raise ValueError(f"the sets have {len(a.mean_F)} and {len(b.mean_F)} features: use one network for both")
    values_F, vectors_FF = torch.linalg.eigh(a.covariance_FF)
    root_FF = (vectors_FF * values_F.clamp(min=0).sqrt()) @ vectors_FF.T
    product_FF = root_FF @ b.covariance_FF @ root_FF
    cross = torch.linalg.eigvalsh((product_FF + product_FF.T) / 2).clamp(min=0).sqrt().sum()
    traces = a.covariance_FF.trace() + b.covariance_FF.trace()
    squared = (a.mean_F - b.mean_F).square().sum() + traces - 2 * cross
    return float(squared.clamp(min=0))  # of equal sets it may be a rounding error below
