"""Precision, recall, density and coverage: which samples lie where real images are, and the other way round.

A set's manifold is the union of balls round its images, each up to the image's k-th nearest neighbour in the set. Balls
are closed, as in Kynkaanniemi et al.: an image at exactly the radius is inside, and so is a copy of an image whose own
copies make its radius 0. (The code that Naeem et al. published has open balls; only ties tell them apart.)

Distances are float64 products of features less the mean of the real ones, a block of rows at a time: memory grows with
N, not with N squared. A tie is a tie whatever the rounding: radii are longer by more than a product can be wrong.

Shapes: N real images, M samples, n m some of them, F features.
Sources: Kynkaanniemi et al. 2019, section 2; Naeem et al. 2020, section 3.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mvar.evaluation.checks import check_two_sets
from mvar.validation import is_integer

BLOCK = 2**22  # distances at once: 32 MB
SLACK = 1e-11  # of squared lengths; float64 products of 2048 features are right to 5e-13


def precision_recall(real_NF: Tensor, fake_MF: Tensor, k: int = 3) -> tuple[float, float]:
    """The part of the samples on the manifold of the real images, and of these on the manifold of the samples.

    Args:
        real_NF: features, more than k images.
        fake_MF: features of the same network, more than k images.
        k: the neighbour that a ball reaches.

    Returns:
        Precision and recall, each in [0, 1].

    Raises:
        ValueError: bad features, or sets of k images or fewer.
    """
    _check(real_NF, fake_MF, k)
    centre_F = real_NF.double().mean(0)
    real_radii_N, fake_radii_M = (_squared_radii(x, centre_F, k) for x in (real_NF, fake_MF))
    precise_M = torch.zeros(len(fake_MF), dtype=torch.bool, device=fake_MF.device)
    recalled = 0
    for rows, distances_nM in _squared_distances(real_NF, fake_MF, centre_F):
        precise_M |= (distances_nM <= real_radii_N[rows, None]).any(0)
        recalled += int((distances_nM <= fake_radii_M).any(1).sum())
    return float(precise_M.double().mean()), recalled / len(real_NF)


def density_coverage(real_NF: Tensor, fake_MF: Tensor, k: int = 5) -> tuple[float, float]:
    """How many real images' balls a sample lies in, over k, on average; and the part of these balls that hold a sample.

    Args:
        real_NF: features, more than k images.
        fake_MF: features of the same network, more than k images.
        k: the neighbour that a ball reaches.

    Returns:
        Density, at least 0 and about 1 when both sets are drawn alike, and coverage in [0, 1].

    Raises:
        ValueError: bad features, or sets of k images or fewer.
    """
    _check(real_NF, fake_MF, k)
    centre_F = real_NF.double().mean(0)
    radii_N = _squared_radii(real_NF, centre_F, k)
    held, covered = 0, 0
    for rows, distances_nM in _squared_distances(real_NF, fake_MF, centre_F):
        inside_nM = distances_nM <= radii_N[rows, None]
        held += int(inside_nM.sum())
        covered += int(inside_nM.any(1).sum())
    return held / (k * len(fake_MF)), covered / len(real_NF)


def _check(real_NF: Tensor, fake_MF: Tensor, k: int) -> None:
    if not is_integer(k) or k < 1:
        raise ValueError(f"k = {k!r}: must be an integer of at least 1")
    check_two_sets(real_NF, fake_MF, k + 1, f"the neighbour k = {k}")


def _squared_radii(features_NF: Tensor, centre_F: Tensor, k: int) -> Tensor:
    """Of each image's ball, (N,): the squared distance to its k-th nearest neighbour, and the slack for ties."""
    norms_N = (features_NF - centre_F).square().sum(1)
    # The nearest of all is the image itself.
    nearest = [
        distances_nN.topk(k + 1, largest=False).values[:, k]
        for _, distances_nN in _squared_distances(features_NF, features_NF, centre_F)
    ]
    radii_N = torch.cat(nearest)
    return radii_N + SLACK * (norms_N + radii_N)


def _squared_distances(rows_NF: Tensor, columns_MF: Tensor, centre_F: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows, each with its distances (n, M) to all columns."""
    columns_MF = columns_MF - centre_F  # float64, as the centre is
    norms_M = columns_MF.square().sum(1)
    step = max(1, BLOCK // len(columns_MF))
    for start in range(0, len(rows_NF), step):
        rows = slice(start, start + step)
        rows_nF = rows_NF[rows] - centre_F
        yield rows, rows_nF.square().sum(1)[:, None] + norms_M - 2 * rows_nF @ columns_MF.T
