import pytest
import torch

from mvar.ops.filtering import candidates, guide, spread_out


def filtered(logits, k=0, p=1.0):
    return spread_out(*candidates(logits, k, p), logits.shape[-1], elsewhere=-torch.inf)


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


@pytest.mark.parametrize("k", [1, 2, 96, 97, 500])
def test_top_k_is_the_definition(k):
    logits = logits_of(0)
    assert torch.equal(filtered(logits, k), top_k_naive(logits, k))


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.96, 0.999])
@pytest.mark.parametrize("k", [0, 7])
@pytest.mark.parametrize("scale", [0.1, 3.0, 50.0])
def test_top_p_is_the_definition(p, k, scale):
    logits = logits_of(1, scale)
    fast, naive = filtered(logits, k, p), top_p_naive(top_k_naive(logits, k) if k else logits, p)
    assert torch.equal(fast, naive)
    assert (fast > -torch.inf).any(-1).all()


def test_ties_with_the_kth_logit_are_kept_and_count_for_top_p():
    kept = filtered(torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]]), 2) > -torch.inf
    assert kept.tolist() == [[False, True, True, True, True, False]]
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0, 5.0], [9.0, 8.0, 7.0, 6.0, 5.0]]).log_softmax(-1)
    assert (filtered(logits, 2, 0.5) > -torch.inf).tolist() == [[False] * 4 + [True], [True] + [False] * 4]
    everything_tied = filtered(torch.zeros(1, 4), p=0.6)  # steps of 0.25: one is <= 0.4, two are not
    assert (everything_tied > -torch.inf).sum() == 3
    assert (filtered(torch.tensor([[0.0, 100.0, 0.0]]), p=1e-9) > -torch.inf).tolist() == [[False, True, False]]


def test_switched_off():
    logits = logits_of(2)
    for k in (0, 97, 500):
        values, codes = candidates(logits, k, 1.0)
        assert values is logits
        assert codes is None


def test_candidates_come_in_descending_order_with_their_codes():
    logits = logits_of(2)
    values, codes = candidates(logits, 7, 0.9)
    assert values.shape == codes.shape == (2, 5, 7)
    kept = values > -torch.inf
    assert torch.equal(logits.gather(-1, codes)[kept], values[kept])
    assert torch.equal(values, values.sort(-1, descending=True).values)


def test_guidance():
    cond, uncond = logits_of(3), logits_of(4)
    torch.testing.assert_close(guide(cond, uncond, 1.5), 2.5 * cond - 1.5 * uncond)
    assert torch.equal(guide(cond, uncond, 0.0), cond)
