import pytest
import torch

from mvar.evaluation.kernel import kid


def features(n, F, seed, shift=0.0):
    return torch.randn(n, F, generator=torch.Generator().manual_seed(seed)) + shift


def naive(x, y):
    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3

    x, y = x.tolist(), y.tolist()
    within = [
        sum(kernel(a, b) for i, a in enumerate(s) for j, b in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
        for s in (x, y)
    ]
    return sum(within) - 2 * sum(kernel(a, b) for a in x for b in y) / (len(x) * len(y))


def test_a_subset_of_everything_is_the_double_loop():
    real, fake = features(12, 5, 0), features(12, 5, 1, shift=0.5)
    mean, deviation, size = kid(real, fake, subsets=3)
    assert mean == pytest.approx(naive(real, fake), rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-9)
    assert size == 12


def test_subsets_are_drawn_without_replacement_and_by_the_seed():
    real, fake = features(7, 3, 2), features(9, 3, 3, shift=1)
    mean, deviation, size = kid(real, fake, subsets=25, subset_size=100, seed=4)
    assert size == 7  # all the real images, seven of the others: the double loop over what the seed draws
    random, estimates = torch.Generator().manual_seed(4), []
    for _ in range(25):
        drawn = [x[torch.randperm(len(x), generator=random)[:7]] for x in (real, fake)]
        estimates.append(naive(*drawn))
    expected = torch.tensor(estimates, dtype=torch.float64)
    assert mean == pytest.approx(expected.mean().item(), rel=1e-9)
    assert deviation == pytest.approx(expected.std(correction=0).item(), rel=1e-9)
    assert kid(real, fake, 25, seed=5) != kid(real, fake, 25, seed=6)


def test_it_is_unbiased():
    estimates = [kid(features(20, 4, i), features(20, 4, 1000 + i), subsets=1).mean for i in range(300)]
    values = torch.tensor(estimates)
    assert values.mean().abs() < 4 * values.std() / 300**0.5  # of sets drawn alike: about zero, on both sides
    assert values.min() < 0 < values.max()


def test_mistakes_are_named():
    good = features(5, 3, 0)
    for arguments, message in (
        ((good, good[:1]), "features of samples: 1 images are too few, KID needs at least 2"),
        ((good * torch.inf, good), "features of real images are not finite"),
        ((good, good[:, :2]), "the sets have 3 and 2 features"),
        ((good, good, 0), "subsets = 0: must be an integer of at least 1"),
        ((good, good, 1, 1), "subset_size = 1: must be an integer of at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            kid(*arguments)
