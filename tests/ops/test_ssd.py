import pytest
import torch

from mvar.ops.ssd import ssd
from mvar.ops.ssd_reference import ssd_reference

# (tokens, chunk): one token, exact and ragged multiples, one chunk, the default of short and long calls
LENGTHS = [(1, None), (5, 8), (16, 8), (17, 8), (37, 5), (130, None), (170, None), (7, 1)]


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


def everything(function, tensors, uses, **options):
    """Values, final state and all gradients of a function that uses y, the final state, or both."""
    y, state = function(*tensors, **options)
    loss = sum(t.mul(torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sin().sum() for t in (y, state)[uses])
    return [y, state, *torch.autograd.grad(loss, tensors, materialize_grads=True)]


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize(("length", "chunk"), LENGTHS)
def test_chunked_equals_recurrence(length, chunk, with_state):
    tensors = inputs(length)[: 6 if with_state else 5]
    for uses in (slice(0, 2), slice(0, 1), slice(1, 2)):
        fast = everything(ssd, tensors, uses, chunk=chunk)
        naive = everything(ssd_reference, tensors, uses)
        for name, a, b in zip(("y", "state", "dx", "ddt", "dA", "dkey", "dquery", "dstate"), fast, naive, strict=False):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, msg=lambda m, n=name, u=uses: f"{n}, using {u}: {m}")


def test_float32_stays_close_over_a_long_sequence():
    tensors = inputs(1000, step=-3)  # steps as long as Mamba-2's init gives
    exact = everything(ssd_reference, tensors, slice(0, 2))
    fast = everything(ssd, [t.detach().float().requires_grad_() for t in tensors], slice(0, 2))
    for a, b in zip(fast, exact, strict=True):
        error = (a.double() - b).abs().max() / b.abs().max()
        assert error < 3e-6, f"relative error {error:.1e}"


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


def test_extreme_steps_stay_finite():
    x, _, A, key, query, _ = inputs(130, torch.float32)
    for size in (1e-30, 1e4):
        dt = torch.full(x.shape[:3], size, requires_grad=True)
        y, state = ssd(x, dt, A, key, query)
        grads = torch.autograd.grad(y.sum() + state.sum(), (x, dt, A, key, query))
        assert all(t.isfinite().all() for t in (y, state, *grads))


def test_autocast_leaves_the_scan_in_float32():
    tensors = [t.detach() for t in inputs(70, torch.float32)]
    with torch.autocast("cpu", torch.bfloat16):
        inside = ssd(*tensors)
    torch.testing.assert_close(inside, ssd(*tensors), rtol=0, atol=0)


def test_wrong_shapes_say_what_was_expected():
    x, dt, A, key, query, state = inputs(6)
    with pytest.raises(ValueError, match=r"dt has shape \(2, 5, 3\), expected \(2, 6, 3\)"):
        ssd(x, dt[:, :5], A, key, query)
    with pytest.raises(ValueError, match=r"state has shape .*, expected \(2, 3, 4, 5\)"):
        ssd(x, dt, A, key, query, state.mT)
    with pytest.raises(ValueError, match="chunk = 0"):
        ssd(x, dt, A, key, query, chunk=0)
