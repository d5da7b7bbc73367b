import pytest
import torch

from mvar.evaluation.frechet import Gaussian, fit, frechet_distance


def features(n, F, seed, scale=1.0, shift=0.0):
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, F, generator=random) @ torch.randn(F, F, generator=random)
    return scale * mixed + shift


def naive(a_NF, b_NF):
    """As the paper writes it: the root of C_a C_b by its eigenvalues, complex where they must be."""
    a_NF, b_NF = a_NF.double(), b_NF.double()
    covariances = []
    for x_NF in (a_NF, b_NF):
        x_NF = x_NF - x_NF.mean(0)
        covariances.append(sum(torch.outer(x_F, x_F) for x_F in x_NF) / (len(x_NF) - 1))
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).sqrt().real.sum()
    means = (a_NF.mean(0) - b_NF.mean(0)).square().sum()
    return float(means + covariances[0].trace() + covariances[1].trace() - 2 * roots)


# Fewer images than features leave the covariances singular, as is usual with small sets.
@pytest.mark.parametrize("n", [200, 9])
def test_it_equals_the_formula_and_is_symmetric(n):
    a, b = features(n, 16, seed=0), features(n + 5, 16, seed=1, scale=1.5, shift=0.3)
    distance = frechet_distance(fit(a), fit(b))
    assert distance == pytest.approx(naive(a, b), rel=1e-6)
    assert distance == pytest.approx(frechet_distance(fit(b), fit(a)), rel=1e-6)
    assert distance > 1


@pytest.mark.parametrize(("n", "F"), [(300, 24), (10, 24), (5, 1)])
def test_a_set_has_no_distance_to_itself_in_any_order(n, F):
    a = fit(features(n, F, seed=2))
    assert 0 <= frechet_distance(a, fit(features(n, F, seed=2).flip(0))) < 1e-5 * a.covariance_FF.trace()


def test_known_closed_forms():
    one = fit(torch.tensor([[0.0], [2.0]])), fit(torch.tensor([[4.0], [10.0]]))  # means 1 and 7, variances 2 and 18
    assert frechet_distance(*one) == pytest.approx(36 + (18**0.5 - 2**0.5) ** 2)
    variances = torch.tensor([[1.0, 4.0, 9.0], [16.0, 4.0, 0.0]]).double()
    a, b = (Gaussian(torch.zeros(3).double(), row.diag()) for row in variances)  # independent features: each alone
    assert frechet_distance(a, b) == pytest.approx((4 - 1) ** 2 + 3**2)
    far = features(50, 4, seed=3)
    assert frechet_distance(fit(far), fit(far + 1000)) == pytest.approx(4 * 1000**2)


def test_what_cannot_be_compared_is_named():
    spoilt = torch.ones(3, 4)
    spoilt[1, 2] = torch.inf
    for bad, message in (
        (torch.ones(1, 4), r"features have shape \(1, 4\): give \(N, F\) of at least two images"),
        (torch.ones(8), r"features have shape \(8,\): give"),
        (spoilt, "features are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(bad)
    with pytest.raises(ValueError, match="the sets have 4 and 5 features: use one network for both"):
        frechet_distance(fit(torch.rand(3, 4)), fit(torch.rand(3, 5)))
