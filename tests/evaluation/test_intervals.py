"""Intervals hold the true value about nine times in ten, by simulation."""

import pytest
import torch
from scipy.stats import norm, t

from mvar.evaluation.collect import Features
from mvar.evaluation.intervals import NORMAL, mean, share, student
from mvar.evaluation.measures import Reference, measure

SETS = 400
NEAR = pytest.approx(0.9, abs=0.06)  # four standard deviations for this number of sets


def test_shares_and_means_are_covered():
    assert norm.ppf(0.95) == pytest.approx(NORMAL, abs=1e-3)
    assert student(10) == pytest.approx(t.ppf(0.95, 9))
    random = torch.Generator().manual_seed(0)
    hits = (torch.rand(SETS, 150, generator=random) < 0.9).double().mean(1).tolist()
    shares = [share(hit, 150) for hit in hits]
    assert sum(s.low <= 0.9 <= s.high for s in shares) / SETS == NEAR
    assert (share(1.0, 20).high, share(0.0, 20).low) == (pytest.approx(1), pytest.approx(0))
    assert share(1.0, 20).low == pytest.approx(0.8808, abs=1e-4)  # 1 / (1 + z^2 / n)
    means = [mean(x) for x in 3 + torch.randn(SETS, 40, generator=random)]
    assert sum(m.low <= 3 <= m.high for m in means) / SETS == NEAR


def drawn(seed, N=200, F=4, K=6):
    random = torch.Generator().manual_seed(seed)
    logits_NK = torch.randn(N, K, generator=random) * 2 + torch.arange(N)[:, None] / N  # sorted, as by class
    return Features(torch.randn(N, F, generator=random) * 1.1, None, logits_NK.softmax(1))


def test_measures_are_covered(monkeypatch):
    monkeypatch.setattr("mvar.evaluation.measures.SUBSET_SIZE", 50)
    monkeypatch.setattr("mvar.evaluation.measures.SUBSETS", 20)
    reference = Reference.of(drawn(10_000))
    found = [measure(drawn(i), reference, "FID", i, "none") for i in range(60)]
    for name in ("KID", "IS", "precision", "recall", "coverage"):
        values = [metrics[name] for metrics in found]
        centre = sum(v.value for v in values) / len(values)
        covered = sum(v.low <= centre <= v.high for v in values) / len(values)
        assert covered >= 0.75, name  # 0.9 less four deviations of so few sets; samples share one reference
