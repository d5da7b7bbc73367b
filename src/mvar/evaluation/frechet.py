"""The Frechet distance between two sets of features: FID, sFID and their kin, by the network that gives the features.

Shapes: N images, F features, R rank of a covariance, n distinct images of a resampled set. Everything is in float64.
Source: Heusel et al. 2017, equation 6.
"""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mvar.evaluation.intervals import student


class Gaussian(NamedTuple):
    """What the distance knows of a set."""

    mean_F: Tensor
    covariance_FF: Tensor  # unbiased


def from_arrays(mu: np.ndarray, sigma: np.ndarray, source: str = "reference") -> Gaussian:
    """The Gaussian of published statistics, for example the `mu` (F,) and `sigma` (F, F) of an ADM reference.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite; `source` is what it calls the file.
    """
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{source}: statistics are {mu.shape} and {sigma.shape}; give mu (F,) and sigma (F, F)")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ValueError(f"{source}: its statistics are not finite; write or fetch the file again")
    mean_F, covariance_FF = (torch.from_numpy(array.astype(np.float64)) for array in (mu, sigma))
    return Gaussian(mean_F, (covariance_FF + covariance_FF.T) / 2)


def check_features(features_NF: Tensor, name: str = "features", least: int = 2) -> None:
    """Raises ValueError unless features are (N, F) and finite, of enough images."""
    if features_NF.ndim != 2:
        raise ValueError(f"{name} have shape {tuple(features_NF.shape)}: give (N, F)")
    if not bool(features_NF.isfinite().all()):
        raise ValueError(f"{name} are not finite: a network or an image is damaged")
    if len(features_NF) < least:
        raise ValueError(f"{name}: {len(features_NF)} images are too few; give at least {least}")


def fit(features_NF: Tensor) -> Gaussian:
    """Mean and covariance of features (N, F) of at least two images; raises ValueError for others."""
    check_features(features_NF)
    features_NF = features_NF.double()
    mean_F = features_NF.mean(0)
    centred_NF = features_NF - mean_F
    return Gaussian(mean_F, centred_NF.T @ centred_NF / (len(features_NF) - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), at least zero.

    With C = R R^T for both, the trace of the root is the sum of the singular values of R_a^T R_b, which is exact for
    singular covariances too. Raises ValueError where the two have different numbers of features.
    """
    if len(a.mean_F) != len(b.mean_F):
        raise ValueError(f"the sets have {len(a.mean_F)} and {len(b.mean_F)} features: use one network for both")
    cross = torch.linalg.svdvals(_root(a.covariance_FF).T @ _root(b.covariance_FF)).sum()
    traces = a.covariance_FF.trace() + b.covariance_FF.trace()
    squared = (a.mean_F - b.mean_F).square().sum() + traces - 2 * cross
    return float(squared.clamp(min=0))  # for equal sets a rounding error may be below


def too_few(images: int, dimensions: int) -> str | None:
    """The warning beside a distance of fewer images than twice the dimensions; None for others."""
    if images >= 2 * dimensions:
        return None
    return (
        f"N = {images} is below 2 x {dimensions} dimensions: the covariance is poorly known and the distance too high; "
        "compare it only with one at the same N"
    )


def bootstrap(samples_NF: Tensor, reference: Gaussian, rounds: int = 40, seed: int = 0) -> tuple[float, float]:
    """The 90 % interval (low, high) of the distance of samples, features (N, F) of at least two images, to a reference.

    It covers the variation among sets of N samples, neither the bias of a small N nor the choice of reference images.
    Sets drawn with replacement have fewer distinct images and are farther from everything, so only the deviation of
    their distances is used: the interval is the distance plus and minus Student's t times it, at least 0. With fewer
    images than a few times the dimensions it is too large.
    """
    N = len(samples_NF)
    apart_NF = samples_NF.double() - reference.mean_F
    norms_N = apart_NF.square().sum(1)
    projected_NR = apart_NF @ _root(reference.covariance_FF)

    def distance(rows_N: Tensor) -> float:
        """The distance of these images, without computing their covariance: the projection has all of it."""
        counts_N = rows_N.bincount(minlength=N)
        chosen_n = counts_N.nonzero().squeeze(1)
        counts_n = counts_N[chosen_n].double()
        mean_F = counts_N.double() @ apart_NF / N
        trace = (counts_N.double() @ norms_N - N * mean_F.square().sum()) / (N - 1)
        rows_nR = projected_NR[chosen_n]
        rows_nR = (rows_nR - counts_n @ rows_nR / N) * (counts_n / (N - 1)).sqrt()[:, None]
        n, R = rows_nR.shape
        products = rows_nR.T @ rows_nR if n > R else rows_nR @ rows_nR.T
        cross = torch.linalg.eigvalsh(products).clamp(min=0).sqrt().sum()
        return float(mean_F.square().sum() + trace + reference.covariance_FF.trace() - 2 * cross)

    return _interval(distance, N, rounds, seed)


def bootstrap_pairs(restored_NF: Tensor, originals_NF: Tensor, rounds: int = 10, seed: int = 0) -> tuple[float, float]:
    """As `bootstrap`, of the distance between images and their reconstructions in the same order, drawn in pairs."""

    def distance(rows_N: Tensor) -> float:
        return frechet_distance(fit(restored_NF[rows_N]), fit(originals_NF[rows_N]))

    return _interval(distance, len(restored_NF), rounds, seed)


def _interval(distance: Callable[[Tensor], float], N: int, rounds: int, seed: int) -> tuple[float, float]:
    """Around the distance of all N images, from the distances of resampled sets."""
    rng = torch.Generator().manual_seed(seed)
    distances = [distance(torch.randint(N, (N,), generator=rng)) for _ in range(rounds)]
    value, apart = distance(torch.arange(N)), student(rounds) * statistics.stdev(distances)
    return max(0.0, value - apart), value + apart


def _root(covariance_FF: Tensor) -> Tensor:
    """R (F, R) with R R^T = C; directions whose variance is a rounding error are left out."""
    values_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    kept_F = values_F > len(values_F) * torch.finfo(torch.float64).eps * values_F.max()
    return vectors_FF[:, kept_F] * values_F[kept_F].sqrt()
