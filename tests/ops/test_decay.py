"""Every scan against the float64 recurrence, from heads that keep all to heads that keep nothing, steps mixed."""

import pytest
import torch

from mvar.ops.decay import log_decay, running_sum
from mvar.ops.ssd import ssd
from mvar.ops.ssd_chunk import ssd_chunk
from mvar.ops.ssd_reference import ssd_reference

DECAYS = torch.tensor([-(10.0**n) for n in (*range(-3, 8), 38)], dtype=torch.float64)  # the last: dt A = -inf


def inputs(steps, batch=2, length=150, head_dim=4, state_size=5):
    """Arguments of a scan in float32, and the same numbers in float64; steps None: from 1e-6 to 10 at random."""
    rng, heads = torch.Generator().manual_seed(0), len(DECAYS)

    def normal(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    dt = 10 ** (7 * torch.rand(batch, length, heads, generator=rng, dtype=torch.float64) - 6)
    dt = dt if steps is None else torch.full_like(dt, steps)
    keys_and_queries = normal(batch, length, state_size), normal(batch, length, state_size)
    state = normal(batch, heads, head_dim, state_size)
    low = [t.float() for t in (normal(batch, length, heads, head_dim), dt, DECAYS, *keys_and_queries, state)]
    return low, [t.double() for t in low]


def one_chunk(x, dt, A, key, query, state):
    B, h, P, N = state.shape
    y, state_BNE = ssd_chunk(x, dt, A, key, query, state.permute(0, 3, 1, 2).flatten(2))
    return y, state_BNE.view(B, N, h, P).permute(0, 2, 3, 1)


def error(found, exact, heads):
    """The largest error of each head, as a share of the head's largest value."""
    by_head = (t.detach().movedim(heads, 0).reshape(t.shape[heads], -1) for t in (found.double() - exact, exact))
    apart, size = (t.abs().amax(1) for t in by_head)
    return float((apart / size.clamp_min(1e-30)).max())


STEPS = [None, 1e-6, 1e-3, 0.3, 5.0, 10.0]


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("scan", [ssd, lambda *t: ssd(*t, chunk=150), one_chunk], ids=["ssd", "ssd-one", "chunk"])
def test_values_and_states_are_float32s_own(scan, steps):
    low, exact = inputs(steps)
    for name, found, expected in zip(("y", "state"), scan(*low), ssd_reference(*exact), strict=True):
        assert error(found, expected, heads=2 if name == "y" else 1) < 2e-6, name


@pytest.mark.parametrize("steps", STEPS)
def test_gradients_are_too(steps):
    low, exact = inputs(steps)
    grads = []
    for scan, tensors in ((ssd, low), (ssd_reference, exact)):
        y, state = scan(*[t.requires_grad_() for t in tensors])
        weights = torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).view_as(y[0])
        grads.append(torch.autograd.grad((y * weights).sum() + (state * weights[0, :, :, None]).sum(), tensors))
    places = {"x": 2, "dt": 2, "A": 0, "key": 2, "query": 2, "state": 1}
    for (name, heads), found, expected in zip(places.items(), *grads, strict=True):
        # A's is a sum of products with steps that differ by seven orders, the longest with slopes next to none.
        assert error(found, expected, heads) < (2e-3 if name == "A" else 5e-6), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounded_decays_are_the_same_decays(dtype):
    dt = torch.tensor([0.0, 1e-6, 1.0, 100.0, 110.0, 740.0, 750.0, 1e30, torch.inf], dtype=dtype)
    minus_one = torch.tensor(-1.0, dtype=dtype)
    assert torch.equal(log_decay(dt, minus_one).exp(), (dt * minus_one).exp())
    assert log_decay(dt, minus_one).isfinite().all()
    assert log_decay(torch.tensor(torch.nan, dtype=dtype), minus_one).isnan()


def test_a_running_sum_keeps_what_rounding_drops():
    a = torch.tensor([-104.0, -1e-7, -1e-3, -104.0, -3e-6, -1e-9])
    c, rest = running_sum(a, 0)
    exact = a.double().cumsum(0)
    assert torch.equal(c, exact.float())
    torch.testing.assert_close(c.double() + rest.double(), exact, rtol=0, atol=1e-12)
