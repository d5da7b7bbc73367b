"""Precision, recall, density and coverage: which samples lie where real images are, and the other way round.

A set's manifold is the union of closed balls round its images, each up to the image's k-th nearest neighbour in the
set. Distances are float64 products of features less the mean of the real ones, a block of rows at a time. So that ties
count whatever the rounding, radii are lengthened by more than a product's error.

Shapes: N real images, M samples, n m some of them, F features.
Sources: Kynkaanniemi et al. 2019, section 2; Naeem et al. 2020, section 3.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mvar.evaluation.scores import check_two_sets

BLOCK = 2**22  # distances at once: 32 MB
SLACK = 1e-11  # relative to squared lengths; float64 products of 2048 features are right to 5e-13


class Overlap(NamedTuple):
    """How two sets' manifolds overlap; all in [0, 1] but density, which is about 1 for two sets drawn alike."""

    precision: float  # share of the samples on the manifold of the real images
    recall: float  # share of the real images on the manifold of the samples
    density: float  # real images' balls that a sample lies in, over k, on average
    coverage: float  # share of the real images' balls that hold a sample


def overlap(real_NF: Tensor, fake_MF: Tensor, k: int = 3, density_k: int = 5) -> Overlap:
    """All four measures, from one pass over the distances.

    Args:
        k: the neighbour that a ball reaches for precision and recall.
        density_k: and for density and coverage.

    Raises:
        ValueError: bad features, or sets without more images than either k.
    """
    check_two_sets(real_NF, fake_MF, max(k, density_k) + 1)
    centre_F = real_NF.double().mean(0)
    near_N, far_N = _squared_radii(real_NF, centre_F, k, density_k)
    (fake_M,) = _squared_radii(fake_MF, centre_F, k)
    precise_M = torch.zeros(len(fake_MF), dtype=torch.bool, device=fake_MF.device)
    recalled, held, covered = 0, 0, 0
    for rows, distances_nM in _squared_distances(real_NF, fake_MF, centre_F):
        precise_M |= (distances_nM <= near_N[rows, None]).any(0)
        recalled += int((distances_nM <= fake_M).any(1).sum())
        inside_nM = distances_nM <= far_N[rows, None]
        held += int(inside_nM.sum())
        covered += int(inside_nM.any(1).sum())
    return Overlap(
        precision=float(precise_M.double().mean()),
        recall=recalled / len(real_NF),
        density=held / (density_k * len(fake_MF)),
        coverage=covered / len(real_NF),
    )


def _squared_radii(features_NF: Tensor, centre_F: Tensor, *neighbours: int) -> list[Tensor]:
    """For each k, (N,): the squared distance of each image to its k-th nearest neighbour, and slack for ties."""
    norms_N = (features_NF - centre_F).square().sum(1)
    nearest_Nk = norms_N.new_empty(len(norms_N), max(neighbours) + 1)  # the nearest of all is the image itself
    for rows, distances_nN in _squared_distances(features_NF, features_NF, centre_F):
        # Copied: the tensor that topk gives keeps memory for all columns.
        nearest_Nk[rows] = distances_nN.topk(max(neighbours) + 1, largest=False).values
    return [nearest_Nk[:, k] + SLACK * (norms_N + nearest_Nk[:, k]) for k in neighbours]


def _squared_distances(rows_NF: Tensor, columns_MF: Tensor, centre_F: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows, each with its distances (n, M) to all columns."""
    columns_MF = columns_MF - centre_F  # float64, as the centre is
    norms_M = columns_MF.square().sum(1)
    step = max(1, BLOCK // len(columns_MF))
    for start in range(0, len(rows_NF), step):
        rows = slice(start, start + step)
        rows_nF = rows_NF[rows] - centre_F
        yield rows, rows_nF.square().sum(1)[:, None] + norms_M - 2 * rows_nF @ columns_MF.T
