import numpy as np
import pytest
import torch
from scipy.stats import t as student

from mvar.evaluation.frechet import Gaussian, bootstrap, bootstrap_pairs, fit, frechet_distance, from_arrays, too_few


def features(n, F, seed, scale=1.0, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, F, generator=random) @ torch.randn(F, F, generator=random)
    return scale * mixed + shift


def from_images(a_NF, b_NF):
    """From the images themselves, without covariances, whose root loses digits."""
    a_NF, b_NF = a_NF.double(), b_NF.double()
    centred = [(x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a_NF, b_NF)]
    cross = torch.linalg.matrix_norm(centred[0] @ centred[1].T, "nuc")
    means = (a_NF.mean(0) - b_NF.mean(0)).square().sum()
    return float(means + sum(x.square().sum() for x in centred) - 2 * cross)


@pytest.mark.parametrize("n", [200, 9, 2])  # fewer images than features leave the covariances singular
def test_it_equals_the_formula_and_is_symmetric(n):
    a, b = features(n, 16, seed=0), features(n + 5, 16, seed=1, scale=1.5, shift=0.3)
    distance = frechet_distance(fit(a), fit(b))
    assert distance == pytest.approx(from_images(a, b), rel=1e-12)
    assert distance == pytest.approx(frechet_distance(fit(b), fit(a)), rel=1e-12)
    assert distance > 1
    assert 0 <= frechet_distance(fit(a), fit(a.flip(0))) < 1e-12 * fit(a).covariance_FF.trace()


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_moments_are_right_far_from_zero_too(shift):
    x = features(50, 6, seed=4, shift=shift)
    gaussian, x = fit(x), x.double().numpy()
    np.testing.assert_allclose(gaussian.mean_F.numpy(), x.mean(0), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(gaussian.covariance_FF.numpy(), np.cov(x, rowvar=False), rtol=0, atol=1e-10)


def test_known_closed_forms():
    one = fit(torch.tensor([[0.0], [2.0]])), fit(torch.tensor([[4.0], [10.0]]))  # means 1 and 7, variances 2 and 18
    assert frechet_distance(*one) == pytest.approx(36 + (18**0.5 - 2**0.5) ** 2)
    variances = torch.tensor([[1.0, 4.0, 9.0], [16.0, 4.0, 0.0]]).double()
    a, b = (Gaussian(torch.zeros(3).double(), row.diag()) for row in variances)  # independent features: each alone
    assert frechet_distance(a, b) == pytest.approx((4 - 1) ** 2 + 3**2)
    far = features(50, 4, seed=3)
    assert frechet_distance(fit(far), fit(far + 1000)) == pytest.approx(4 * 1000**2)
    a, b = fit(torch.full((3, 4), 2.0)), fit(torch.full((2, 4), 5.0))  # equal images have no covariance
    assert frechet_distance(a, b) == 4 * 3**2
    assert bootstrap(torch.full((3, 4), 2.0), b, rounds=5) == (36, 36)


def test_the_interval_is_that_of_resampled_sets():
    x, reference = features(40, 5, seed=8), fit(features(300, 5, seed=9))
    random = torch.Generator().manual_seed(11)
    drawn = [x[torch.randint(40, (40,), generator=random)] for _ in range(30)]
    distances = np.array([frechet_distance(fit(d), reference) for d in drawn])
    value, reach = frechet_distance(fit(x), reference), student.ppf(0.95, 29) * distances.std(ddof=1)
    assert bootstrap(x, reference, rounds=30, seed=11) == pytest.approx([value - reach, value + reach])
    assert bootstrap(x, reference, rounds=30, seed=12) != bootstrap(x, reference, rounds=30, seed=11)
    few = fit(features(3, 5, seed=9))  # a singular reference, and fewer images than features
    low, high = bootstrap(x[:4], few, rounds=30)
    assert 0 <= low <= frechet_distance(fit(x[:4]), few) <= high


def test_the_interval_covers_what_other_samples_give():
    F, N, sets = 4, 200, 100
    every = features(4000, F, seed=10)
    reference = fit(every)

    def draw(seed):
        return 1.3 * every[torch.randperm(4000, generator=torch.Generator().manual_seed(seed))[:N]]

    expected = np.mean([frechet_distance(fit(draw(1000 + i)), reference) for i in range(200)])
    intervals = [bootstrap(draw(i), reference, rounds=20, seed=i) for i in range(sets)]
    covered = sum(low <= expected <= high for low, high in intervals) / sets
    assert 0.8 < covered < 0.99  # 0.9 within 3 deviations of so few sets
    widths = [high - low for low, high in (bootstrap(1.3 * every[:n], reference, 100) for n in (100, 1600))]
    assert 2.5 < widths[0] / widths[1] < 6  # 4 by the root of N


def test_pairs_are_resampled_together():
    originals = features(50, 4, seed=20)
    restored = originals + 0.1 * features(50, 4, seed=21)
    random = torch.Generator().manual_seed(3)
    drawn = [torch.randint(50, (50,), generator=random) for _ in range(8)]
    distances = [frechet_distance(fit(restored[rows]), fit(originals[rows])) for rows in drawn]
    value, reach = frechet_distance(fit(restored), fit(originals)), student.ppf(0.95, 7) * np.std(distances, ddof=1)
    expected = [max(0, value - reach), value + reach]
    assert bootstrap_pairs(restored, originals, rounds=8, seed=3) == pytest.approx(expected)
    alone = bootstrap(restored, fit(originals), rounds=8, seed=3)
    assert alone[1] - alone[0] > 3 * reach  # what pairs share moves neither


def test_too_few_images_are_warned_of():
    assert too_few(4096, 2048) is None
    assert "N = 4095 is below 2 x 2048 dimensions" in too_few(4095, 2048)


def test_bad_features_are_named():
    spoilt = torch.ones(3, 4)
    spoilt[1, 2] = torch.inf
    for bad, message in (
        (torch.ones(1, 4), "features: 1 images are too few; give at least 2"),
        (torch.ones(8), r"features have shape \(8,\): give \(N, F\)"),
        (spoilt, "features are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(bad)
    four, five = fit(torch.rand(3, 4)), fit(torch.rand(3, 5))
    with pytest.raises(ValueError, match="the sets have 4 and 5 features: use one network for both"):
        frechet_distance(four, five)


def test_published_statistics_are_taken_as_they_are():
    a, b = fit(features(60, 5, seed=12)), fit(features(60, 5, seed=13))
    mu, sigma = a.mean_F.numpy(), a.covariance_FF.numpy()
    assert frechet_distance(from_arrays(mu, sigma), b) == frechet_distance(a, b)
    single = from_arrays(mu.astype(np.float32), sigma.astype(np.float32))
    assert frechet_distance(single, b) == pytest.approx(frechet_distance(a, b), rel=1e-5)
