import math

import pytest
import torch

from mvar.evaluation import manifold
from mvar.evaluation.manifold import overlap


def features(n, F, seed, scale=1.0, shift=0.0):
    return scale * torch.randn(n, F, generator=torch.Generator().manual_seed(seed)) + shift


def balls(points, k):
    """The definition: to the k-th nearest of the other images."""
    return [sorted(math.dist(a, b) for j, b in enumerate(points) if j != i)[k - 1] for i, a in enumerate(points)]


def naive(real, fake, k):
    """Precision, recall, density and coverage, word by word."""
    real, fake = real.tolist(), fake.tolist()
    real_balls, fake_balls = balls(real, k), balls(fake, k)
    in_real = [[math.dist(x, y) <= r for x, r in zip(real, real_balls, strict=True)] for y in fake]
    in_fake = [[math.dist(x, y) <= r for y, r in zip(fake, fake_balls, strict=True)] for x in real]
    precision = sum(any(row) for row in in_real) / len(fake)
    recall = sum(any(row) for row in in_fake) / len(real)
    density = sum(sum(row) for row in in_real) / (k * len(fake))
    coverage = sum(any(column) for column in zip(*in_real, strict=True)) / len(real)
    return precision, recall, density, coverage


@pytest.mark.parametrize("block", [2**22, 100])  # elements: all rows at once, a few rows
@pytest.mark.parametrize(("N", "M", "F", "k"), [(40, 57, 5, 3), (57, 40, 4, 2), (30, 6, 2, 1), (6, 6, 3, 5)])
def test_it_equals_the_double_loop(monkeypatch, block, N, M, F, k):
    monkeypatch.setattr(manifold, "BLOCK", block)
    # Far from zero, where products of features as they are would lose all digits in float32.
    real, fake = features(N, F, 0, shift=300), features(M, F, 1, scale=0.7, shift=301)
    other = 1 + k % 5
    expected = (*naive(real, fake, k)[:2], *naive(real, fake, other)[2:])
    assert overlap(real, fake, k, other) == pytest.approx(expected, abs=1e-12)
    assert F < 4 or all(0 < value < 1 for value in expected)  # nothing is decided beforehand


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("unit", [1.0, 0.1])  # the definition is that of integers; tenths make products round
def test_ties_and_duplicates_are_inside(k, unit):
    grid = torch.cartesian_prod(*[torch.arange(3.0)] * 3).double()  # nearly all distances occur many times
    real, fake = torch.cat([grid, grid[:5], grid[:5], grid[:5]]), torch.cat([grid[3:20] + 1, grid[:2], grid[:2]])
    assert overlap(unit * real, unit * fake, k, k) == pytest.approx(naive(real, fake, k), abs=1e-12)


def test_a_set_beside_itself_and_far_away():
    x = features(200, 16, 2, shift=50)
    mixed = x[torch.randperm(200, generator=torch.Generator().manual_seed(3))]
    # Each ball holds its own image and five others, the last of them at exactly the radius.
    assert overlap(x, mixed) == (1, 1, 6 / 5, 1)
    assert overlap(x, x + 1000) == (0, 0, 0, 0)
    copies = torch.ones(7, 3)
    assert overlap(copies, copies)[:2] == (1, 1)


def test_bad_features_are_named():
    spoilt = features(9, 3, 0)
    spoilt[4, 1] = torch.nan
    good = features(9, 3, 1)
    for real, fake, message in (
        (good[:5], good, "features of real images: 5 images are too few; give at least 6"),
        (good, good[:4], "features of samples: 4 images are too few"),
        (good, spoilt, "features of samples are not finite"),
        (good, good[:, :2], "the sets have 3 and 2 features"),
        (good, good[0], r"features of samples have shape \(3,\): give \(N, F\)"),
    ):
        with pytest.raises(ValueError, match=message):
            overlap(real, fake)
