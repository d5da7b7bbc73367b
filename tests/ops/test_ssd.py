import pytest
import torch

from mvar.ops.mamba import ssd_reference
from mvar.ops.ssd import log_decay, running_sum, ssd

# (tokens, longest chunk): one token, one chunk, exact and ragged multiples, a chunk for each token
LENGTHS = [(1, 72), (5, 8), (16, 8), (17, 8), (130, 72), (7, 1)]


def inputs(length, dtype=torch.float64, step=0.0, batch=2, heads=3, head_dim=4, state_size=5):
    g = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    x = normal(batch, length, heads, head_dim)
    dt = torch.nn.functional.softplus(normal(batch, length, heads) + step)
    A = -torch.exp(normal(heads))
    key, query = normal(batch, length, state_size), normal(batch, length, state_size)
    state = normal(batch, heads, head_dim, state_size)
    return [t.to(dtype).requires_grad_() for t in (x, dt, A, key, query, state)]


def everything(function, tensors, uses):
    """Values, final state and all gradients of a function that uses y, the final state, or both."""
    y, state = function(*tensors)
    loss = sum(t.mul(torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sin().sum() for t in (y, state)[uses])
    return [y, state, *torch.autograd.grad(loss, tensors, materialize_grads=True)]


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize(("length", "chunk"), LENGTHS)
def test_chunked_equals_recurrence(length, chunk, with_state, monkeypatch):
    monkeypatch.setattr("mvar.ops.ssd.LONGEST_CHUNK", chunk)
    tensors = inputs(length)[: 6 if with_state else 5]
    for uses in (slice(0, 2), slice(0, 1), slice(1, 2)):
        fast = everything(ssd, tensors, uses)
        naive = everything(ssd_reference, tensors, uses)
        for name, a, b in zip(("y", "state", "dx", "ddt", "dA", "dkey", "dquery", "dstate"), fast, naive, strict=False):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, n=name, u=uses: f"{n}, using {u}: {m}")


@pytest.mark.parametrize("step", [-5, -1])
def test_bfloat16_tokens_leave_all_gradients_near(step):
    """Also those of steps and decays, which are small differences of large sums."""
    exact = [t.detach() for t in inputs(300, step=step, head_dim=32, state_size=16)]
    low = [t.float() if i in (1, 2, 5) else t.bfloat16() for i, t in enumerate(exact)]
    results = []
    for tensors in (low, [t.double() for t in low]):
        results.append(everything(ssd, [t.requires_grad_() for t in tensors], slice(0, 1)))
    names = ("y", "state", "dx", "ddt", "dA", "dkey", "dquery", "dstate")
    for name, a, b in zip(names, *results, strict=True):
        error = (a.double() - b).norm() / b.norm()
        assert error < 0.05, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("split", [(1, 4, 9, 16, 70), (100,), (3, 97)])
def test_carried_state_equals_one_call(split):
    x, dt, A, key, query, state = inputs(100)
    whole, final = ssd(x, dt, A, key, query, state)
    pieces = []
    for parts in zip(*(t.split(split, dim=1) for t in (x, dt, key, query)), strict=True):
        y, state = ssd(*parts[:2], A, *parts[2:], state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-11)
    torch.testing.assert_close(state, final, rtol=0, atol=1e-11)


def test_autocast_leaves_the_scan_in_float32():
    tensors = [t.detach() for t in inputs(70, torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssd(*tensors)
    torch.testing.assert_close(inside, ssd(*tensors), rtol=0, atol=0)


# --- heads that keep all to heads that keep nothing, steps mixed ---

DECAYS = torch.tensor([-(10.0**n) for n in (*range(-3, 8), 38)], dtype=torch.float64)  # the last: dt A = -inf


def mixed_inputs(steps, batch=2, length=150, head_dim=4, state_size=5):
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


def error(found, exact, heads):
    """The largest error of each head, as a share of the head's largest value."""
    by_head = (t.detach().movedim(heads, 0).reshape(t.shape[heads], -1) for t in (found.double() - exact, exact))
    apart, size = (t.abs().amax(1) for t in by_head)
    return float((apart / size.clamp_min(1e-30)).max())


@pytest.mark.parametrize("steps", [None, 1e-6, 0.3, 10.0])
def test_results_and_gradients_are_as_exact_as_float32_allows(steps):
    low, exact = mixed_inputs(steps)
    grads, results = [], []
    for scan, tensors in ((ssd, low), (ssd_reference, exact)):
        y, state = scan(*[t.requires_grad_() for t in tensors])
        results.append((y, state))
        weights = torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).view_as(y[0])
        grads.append(torch.autograd.grad((y * weights).sum() + (state * weights[0, :, :, None]).sum(), tensors))
    for heads, found, expected in zip((2, 1), *results, strict=True):
        assert error(found, expected, heads) < 2e-6
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
