import math

import pytest
import torch

from mvar.evaluation.collect import Features
from mvar.evaluation.measures import Reference, measure
from mvar.evaluation.scores import inception_score, kid


def features(n, F, seed, shift=0.0):
    return torch.randn(n, F, generator=torch.Generator().manual_seed(seed)) + shift


# --- KID ---


def naive_kid(x, y):
    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    x, y = x.tolist(), y.tolist()
    within = [
        sum(kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    return sum(within) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def test_kid_is_the_double_loop_over_the_subsets_of_the_seed():
    real, fake = features(12, 5, 0), features(12, 5, 1, shift=0.5)
    mean, deviation, size = kid(real, fake, subsets=3)  # all of both sets
    assert (mean, deviation, size) == (pytest.approx(naive_kid(real, fake), rel=1e-9), 0, 12)

    real, fake = features(7, 3, 2), features(9, 3, 3, shift=1)
    mean, deviation, size = kid(real, fake, subsets=25, subset_size=100, seed=4)
    assert size == 7  # all the real images, seven of the others
    rng, estimates = torch.Generator().manual_seed(4), []
    for _ in range(25):
        drawn = [x[torch.randperm(len(x), generator=rng)[:7]] for x in (real, fake)]
        estimates.append(naive_kid(*drawn))
    expected = torch.tensor(estimates, dtype=torch.float64)
    assert mean == pytest.approx(expected.mean().item(), rel=1e-9)
    assert deviation == pytest.approx(expected.std(correction=0).item(), rel=1e-9)
    assert kid(real, fake, 25, seed=5) != kid(real, fake, 25, seed=6)


# --- the Inception score ---


def naive_score(rows):
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    divergences = [sum(p * math.log(p / q) for p, q in zip(row, mean, strict=True) if p > 0) for row in rows]
    return math.exp(sum(divergences) / len(rows))


@pytest.mark.parametrize("splits", [1, 4, 23])
def test_the_inception_score_is_the_loop_over_consecutive_parts(splits):
    p = (3 * features(23, 5, 0)).softmax(1).double()
    p[3] = torch.tensor([0.0, 1, 0, 0, 0])  # 0 log 0 is 0
    scores = [naive_score(p[i * 23 // splits : (i + 1) * 23 // splits].tolist()) for i in range(splits)]
    mean = sum(scores) / splits
    deviation = (sum((s - mean) ** 2 for s in scores) / splits) ** 0.5
    assert inception_score(p, splits) == pytest.approx((mean, deviation), rel=1e-9)


def test_the_inception_score_lies_between_1_and_the_number_of_classes():
    assert inception_score(torch.eye(10), 1) == pytest.approx((10, 0))  # sure of each, all classes
    assert inception_score(torch.full((10, 4), 0.25), 2) == pytest.approx((1, 0))  # sure of none
    assert inception_score(torch.eye(10).repeat_interleave(10, 0), 10) == pytest.approx((1, 0))  # class by class


def test_an_evaluation_shuffles_first():
    """A folder of samples is read class by class."""
    found = Features(torch.randn(200, 4), None, torch.eye(10).repeat_interleave(20, 0))
    score = measure(found, Reference.of(found), "FID", 0, "none")["IS"]
    assert 7 < score.value < 9  # of 20 images by chance; 1 in the order as it is
