import math

import pytest
import torch

from mvar.evaluation.collect import Features
from mvar.evaluation.inception_score import inception_score
from mvar.evaluation.measures import Reference, measure


def probabilities(n, K, seed):
    return (3 * torch.randn(n, K, generator=torch.Generator().manual_seed(seed))).softmax(1)


def naive(rows):
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    divergences = [sum(p * math.log(p / q) for p, q in zip(row, mean, strict=True) if p > 0) for row in rows]
    return math.exp(sum(divergences) / len(rows))


@pytest.mark.parametrize("splits", [1, 4, 23])
def test_it_equals_the_loop_over_consecutive_parts(splits):
    p = probabilities(23, 5, 0).double()
    p[3] = torch.tensor([0.0, 1, 0, 0, 0])  # 0 log 0 is 0
    scores = [naive(p[i * 23 // splits : (i + 1) * 23 // splits].tolist()) for i in range(splits)]
    mean = sum(scores) / splits
    deviation = (sum((s - mean) ** 2 for s in scores) / splits) ** 0.5
    assert inception_score(p, splits) == pytest.approx((mean, deviation), rel=1e-9)


def test_its_bounds():
    assert inception_score(torch.eye(10), 1) == pytest.approx((10, 0))  # sure of each, all classes
    assert inception_score(torch.full((10, 4), 0.25), 2) == pytest.approx((1, 0))  # sure of none
    by_class = torch.eye(10).repeat_interleave(10, 0)
    assert inception_score(by_class, 10) == pytest.approx((1, 0))  # the order that the docstring warns of
    mixed = torch.eye(10).repeat(10, 1)
    assert inception_score(mixed, 10) == pytest.approx((10, 0))


def test_an_evaluation_mixes_the_order_first():
    """A folder of samples is read class by class."""
    features = Features(torch.randn(200, 4), None, torch.eye(10).repeat_interleave(20, 0))
    score = measure(features, Reference.of(features), "FID", 0, "none")["IS"]
    assert 7 < score.value < 9  # of 20 images by chance; 1 in the order as it is


def test_mistakes_are_named():
    good = probabilities(5, 3, 1)
    spoilt = good.clone()
    spoilt[2, 1] = torch.nan
    for arguments, message in (
        ((good,), "splits = 10: must be an integer from 1 to the number of images, 5"),
        ((good, 0), "splits = 0"),
        ((spoilt, 2), "probabilities are negative, not finite or do not sum to 1"),
        ((good.log(), 2), "give softmax outputs, no logits"),
        ((good[0], 1), r"probabilities have shape \(3,\): give \(N, K\)"),
    ):
        with pytest.raises(ValueError, match=message):
            inception_score(*arguments)
