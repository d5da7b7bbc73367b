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

from mvar.evaluation.checks import check_dimensions, check_features
from mvar.evaluation.intervals import reach

SYMMETRIC = 1e-5  # of the largest entry: what covariances saved as float32 keep


class Gaussian(NamedTuple):
    """What the distance knows of a set."""

    mean_F: Tensor
    covariance_FF: Tensor  # unbiased


def from_arrays(
    mu: np.ndarray, sigma: np.ndarray, source: str = "reference", names: tuple[str, str] = ("mu", "sigma")
) -> Gaussian:
    """The Gaussian of published statistics, for example the `mu` and `sigma` of an ADM reference.

    Args:
        mu: mean, (F,).
        sigma: covariance, (F, F).
        source: what messages call the file.
        names: what they call the two.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or no covariance.
    """
    mean, covariance = names
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"{source}: {mean} is {mu.shape} and {covariance} {sigma.shape}, expected (F,) and (F, F)")
    mean_F, covariance_FF = (torch.from_numpy(array.astype(np.float64)) for array in (mu, sigma))
    if not bool(mean_F.isfinite().all() and covariance_FF.isfinite().all()):
        raise ValueError(f"{source}: {mean} or {covariance} is not finite: the file is damaged")
    apart = (covariance_FF - covariance_FF.T).abs().max()
    if apart > SYMMETRIC * covariance_FF.abs().max() or covariance_FF.diag().min() < 0:
        raise ValueError(f"{source}: {covariance} is no covariance: it must be symmetric, with no negative variance")
    return Gaussian(mean_F, (covariance_FF + covariance_FF.T) / 2)


def fit(features_NF: Tensor) -> Gaussian:
    """Mean and covariance of features (N, F).

    Raises:
        ValueError: fewer than two images, or features that are not (N, F) or not finite.
    """
    check_features(features_NF)
    N = len(features_NF)
    if N < 2:
        raise ValueError(f"the set has {N} images: a covariance needs at least 2")
    features_NF = features_NF.double()
    mean_F = features_NF.mean(0)
    centred_NF = features_NF - mean_F
    return Gaussian(mean_F, centred_NF.T @ centred_NF / (N - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), which is not below zero.

    With C = R R^T for both, the trace of the root is the sum of the singular values of R_a^T R_b. They are exact to
    rounding for singular covariances too, where eigenvalues of C_a C_b, which are their squares, lose half the digits.

    Raises:
        ValueError: the two have different numbers of features.
    """
    check_dimensions(len(a.mean_F), len(b.mean_F))
    cross = torch.linalg.svdvals(_root(a.covariance_FF).T @ _root(b.covariance_FF)).sum()
    traces = a.covariance_FF.trace() + b.covariance_FF.trace()
    squared = (a.mean_F - b.mean_F).square().sum() + traces - 2 * cross
    return float(squared.clamp(min=0))  # of equal sets it may be a rounding error below


def too_few(images: int, dimensions: int) -> str | None:
    """The warning that belongs beside a distance of so few images; None from twice as many images as dimensions on."""
    if images >= 2 * dimensions:
        return None
    return (
        f"N = {images} is below 2 x {dimensions} dimensions: the covariance is poorly known and the distance too high; "
        "compare it only with one at the same N"
    )


def bootstrap(samples_NF: Tensor, reference: Gaussian, rounds: int = 40, seed: int = 0) -> tuple[float, float]:
    """The 90 % interval (low, high) of the distance of samples to a reference.

    It covers what another draw of as many samples would change, and nothing else: neither the bias that a small N has,
    nor the choice of reference images. Samples are drawn again with replacement. A set so drawn has fewer distinct
    images and is farther from everything, so the distances of such sets are too high; only their deviation is used:
    the interval is the distance itself and as many deviations as Student's t has for so few rounds, at least 0. With
    fewer images than a few times the dimensions that deviation is too large, and so is the interval.

    Holds about three copies of the samples in float64.

    Args:
        samples_NF: features of at least two images, (N, F).
        reference: of the same features.
        rounds: sets that are drawn, at least 5.
        seed: the same gives the same interval.

    Raises:
        ValueError: bad features, fewer than two images, fewer than five rounds.
    """
    _check_bootstrap(samples_NF, rounds)
    check_dimensions(samples_NF.shape[1], len(reference.mean_F))
    N = len(samples_NF)
    apart_NF = samples_NF.double() - reference.mean_F
    norms_N = apart_NF.square().sum(1)
    projected_NR = apart_NF @ _root(reference.covariance_FF)

    def distance(rows_N: Tensor) -> float:
        """Of the set of these images, without its covariance: the projection has all of it."""
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
    """As `bootstrap`, of the distance between images and what was made of each: pairs are drawn again together.

    Args:
        restored_NF: features of what was made of the images, (N, F).
        originals_NF: of the images, in the same order.
        rounds, seed: as there; a round takes longer.

    Raises:
        ValueError: as there, or sets of different numbers.
    """
    _check_bootstrap(restored_NF, rounds)
    if restored_NF.shape != originals_NF.shape:
        raise ValueError(f"bootstrap: {tuple(restored_NF.shape)} and {tuple(originals_NF.shape)} features are no pairs")
    return _interval(
        lambda rows_N: frechet_distance(fit(restored_NF[rows_N]), fit(originals_NF[rows_N])),
        len(restored_NF),
        rounds,
        seed,
    )


def _check_bootstrap(samples_NF: Tensor, rounds: int) -> None:
    check_features(samples_NF)
    if len(samples_NF) < 2 or rounds < 5:
        raise ValueError(f"bootstrap: {len(samples_NF)} images and {rounds} rounds; give at least 2 and 5")


def _interval(distance: Callable[[Tensor], float], N: int, rounds: int, seed: int) -> tuple[float, float]:
    """Around the distance of all N images, from those of sets that are drawn again."""
    random = torch.Generator().manual_seed(seed)
    distances = [distance(torch.randint(N, (N,), generator=random)) for _ in range(rounds)]
    value, apart = distance(torch.arange(N)), reach(rounds) * statistics.stdev(distances)
    return max(0.0, value - apart), value + apart


def _root(covariance_FF: Tensor) -> Tensor:
    """R (F, R) with R R^T = C; directions whose variance is a rounding error are left out."""
    values_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    kept_F = values_F > len(values_F) * torch.finfo(torch.float64).eps * values_F.max()
    return vectors_FF[:, kept_F] * values_F[kept_F].sqrt()
