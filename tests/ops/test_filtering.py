import pytest
import torch

from mvar.ops.filtering import guide, top_k, top_p


def top_k_naive(logits, k):
    """The definition, row by row."""
    out = logits.clone()
    for row in out.view(-1, out.shape[-1]):
        kth = sorted(row.tolist(), reverse=True)[min(k, len(row)) - 1]
        row[row < kth] = -torch.inf
    return out


def top_p_naive(logits, p):
    """The definition: walk up from the least likely code while the probability passed stays <= 1 - p."""
    out = logits.clone()
    for row in out.view(-1, out.shape[-1]):
        probabilities, passed = row.softmax(-1), 0.0
        order = row.argsort(stable=True)
        for code in order[:-1]:
            passed += probabilities[code].item()
            if passed > 1 - p:
                break
            row[code] = -torch.inf
    return out


def logits_of(seed, scale=3.0, shape=(2, 5, 97)):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 2, 10, 96, 97, 500])
def test_top_k_is_the_definition(k):
    logits = logits_of(0)
    assert torch.equal(top_k(logits, k), top_k_naive(logits, k))


def test_ties_at_the_kth_logit_are_kept():
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    kept = top_k(logits, 2) > -torch.inf
    assert kept.tolist() == [[False, True, True, True, True, False]]


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.96, 0.999])
@pytest.mark.parametrize("k", [0, 7])
@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
def test_top_p_is_the_definition(p, k, scale):
    logits = top_k(logits_of(1, scale), k)
    fast, naive = top_p(logits, p), top_p_naive(logits, p)
    assert torch.equal(fast, naive)
    assert (fast > -torch.inf).any(-1).all()


def test_top_p_counts_every_tie_that_top_k_kept():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0, 5.0], [9.0, 8.0, 7.0, 6.0, 5.0]]).log_softmax(-1)
    filtered = top_p(top_k(logits, 2), 0.5)
    assert (filtered > -torch.inf).tolist() == [[False] * 4 + [True], [True] + [False] * 4]
    everything_tied = top_p(torch.zeros(1, 4), 0.6)  # steps of 0.25: one is <= 0.4, two are not
    assert (everything_tied > -torch.inf).sum() == 3


def test_the_largest_is_never_dropped():
    logits = torch.tensor([[0.0, 100.0, 0.0]])
    assert (top_p(logits, 1e-9) > -torch.inf).tolist() == [[False, True, False]]


def test_switched_off():
    logits = logits_of(2)
    assert top_k(logits, 0) is top_k(logits, None) is top_p(logits, 1.0) is logits


def test_guidance():
    cond, uncond = logits_of(3), logits_of(4)
    torch.testing.assert_close(guide(cond, uncond, 1.5), 2.5 * cond - 1.5 * uncond)
    assert torch.equal(guide(cond, uncond, 0.0), cond)
