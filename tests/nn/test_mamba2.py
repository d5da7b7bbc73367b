import pytest
import torch

from mvar.nn import mamba2
from mvar.nn.mamba2 import Mamba2, MambaState
from mvar.ops import native
from mvar.ops.ssd_reference import ssd_reference


@pytest.fixture
def layer():
    mamba = Mamba2(32, state_size=8, head_dim=16).double()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in mamba.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=rng))
    return mamba


def state_of(layer, batch):
    rng = torch.Generator().manual_seed(1)
    like = layer.initial_state(batch)
    return MambaState(*(torch.randn(t.shape, generator=rng, dtype=t.dtype) for t in like))


@pytest.mark.parametrize("tile", [1, 4, 7, 96])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 1), (1, 20), (3, 23)])
@pytest.mark.parametrize("begun", [True, False])
def test_in_tiles_without_a_gradient_it_is_the_same(layer, monkeypatch, tile, batch, length, begun):
    monkeypatch.setattr(mamba2, "TILE", tile)
    monkeypatch.setattr(mamba2, "AT_ONCE", 1)
    x, state = torch.randn(batch, length, 32, dtype=torch.float64), state_of(layer, batch) if begun else None
    y, after = layer(x, state)
    with torch.no_grad():
        y_tiles, after_tiles = layer(x, state)
    for a, b in zip((y_tiles, *after_tiles), (y, *after), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_state_that_was_given_stays(layer):
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    with torch.no_grad():
        first = layer(x)[1]
        before = [t.clone() for t in first]
        once, again = layer(x, first), layer(x, first)
    assert all(map(torch.equal, before, first))
    assert torch.equal(once[0], again[0])


@pytest.fixture
def wide():
    """Of the shapes that the compiled passes are for."""
    if native.choose().library is None:
        pytest.skip(native.choose().reason)
    mamba = Mamba2(96, state_size=32, head_dim=64)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in mamba.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return mamba


def compiled_and_plain(layer, projected, state):
    with torch.no_grad():
        y, after = layer._native(projected, state)
        expected_y, expected_after = layer._mix(projected, state)
    return zip((y, *after), (expected_y, *expected_after), strict=True)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 31, 32, 33, 100])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("begun", [True, False])
def test_compiled_it_is_the_same(wide, length, batch, begun):
    projected = 2 * torch.randn(batch, length, wide.in_proj.out_features)
    for fast, plain in compiled_and_plain(wide, projected, state_of(wide, batch) if begun else None):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [-200.0, 50.0])
def test_compiled_steps_of_any_length_stay_finite(wide, step):
    projected = torch.randn(2, 40, wide.in_proj.out_features)
    projected[..., : wide.inner] *= 100  # gates from closed to open
    with torch.no_grad():
        wide.dt_bias += step
    for fast, plain in compiled_and_plain(wide, projected, state_of(wide, 2)):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("path", ["_mix", "_in_tiles", "_native"])
@pytest.mark.parametrize("steps", [None, 1e-6, 0.3, 10.0])
def test_every_path_is_as_exact_as_float32_allows(path, steps):
    """Heads that keep all to heads that keep nothing, steps from 1e-6 to 10, mixed at random where None."""
    if path == "_native" and native.choose().library is None:
        pytest.skip(native.choose().reason)
    rng, A = torch.Generator().manual_seed(0), 10.0 ** torch.arange(-3, 9, dtype=torch.float64)
    low, exact = (Mamba2(32 * len(A), state_size=16, head_dim=64).to(dtype) for dtype in (torch.float32, torch.float64))
    with torch.no_grad():
        for parameter in low.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
        low.A_log.copy_(A.log())
        low.dt_bias.zero_()
    exact.load_state_dict(low.state_dict())
    exact.scan = ssd_reference
    projected, state = torch.randn(2, 70, low.in_proj.out_features, generator=rng), state_of(low, 2)
    dt = 10 ** (7 * torch.rand(2, 70, len(A), generator=rng, dtype=torch.float64) - 6)
    dt = dt if steps is None else torch.full_like(dt, steps)
    projected[..., -len(A) :] = dt.expm1().log()  # the inverse of softplus
    with torch.no_grad():
        y, after = getattr(low, path)(projected, state)
        expected_y, expected_after = exact._mix(projected.double(), MambaState(*(t.double() for t in state)))
    heads = [(t.unflatten(2, (len(A), 64)).transpose(1, 2)) for t in (y, expected_y)]
    for found, expected in (heads, (after.ssm_BhPN, expected_after.ssm_BhPN)):
        apart, size = ((t.abs().amax((0, 2, 3))) for t in (found.double() - expected, expected))
        assert (apart / size).max() < 5e-6


def test_compiled_bfloat16_tokens_keep_a_float32_state(wide):
    projected, state = torch.randn(2, 50, wide.in_proj.out_features), state_of(wide, 2)
    with torch.no_grad():
        y, after = wide._native(projected.bfloat16(), state)
        expected_y, expected_after = wide._mix(projected.bfloat16().float(), state)
    assert (y.dtype, *(t.dtype for t in after)) == (torch.bfloat16, torch.float32, torch.float32)
    assert (y.float() - expected_y).norm() < 0.01 * expected_y.norm()
    for fast, plain in zip(after, expected_after, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


def test_compiled_what_is_no_number_stays_none(wide):
    """A broken network must show as broken, and no earlier than where it breaks."""
    projected = torch.randn(1, 40, wide.in_proj.out_features).bfloat16()
    queries = slice(2 * wide.inner + wide.state_size, 2 * wide.inner + 2 * wide.state_size)
    projected[:, 20, queries] = float("nan")
    with torch.no_grad():
        y, after = wide._native(projected, None)
    assert y[:, :20].isfinite().all()
    assert y[:, 20:24].isnan().all()  # as far as the convolution carries it
    assert after.ssm_BhPN.isfinite().all()


def test_compiled_threads_change_nothing(wide):
    projected, threads = torch.randn(3, 45, wide.in_proj.out_features), torch.get_num_threads()
    results = []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            with torch.no_grad():
                y, after = wide._native(projected[:, ::3], None)  # rows that do not lie together
            results.append((y, *after))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *results))


def test_compiled_denormals_are_ordinary_afterwards(wide):
    with torch.no_grad():
        wide._native(torch.randn(2, 45, wide.in_proj.out_features), None)
    assert (torch.full((4096,), 1e-40) * 0.5 > 0).all()


def test_compiled_tokens_in_two_calls_are_tokens_in_one(wide):
    projected = torch.randn(2, 45, wide.in_proj.out_features)
    with torch.no_grad():
        whole, after = wide._native(projected, None)
        first, between = wide._native(projected[:, :7], None)
        second, end = wide._native(projected[:, 7:], between)
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole, rtol=1e-4, atol=1e-5)
    for a, b in zip(end, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_drawing_takes_the_compiled_passes(wide, monkeypatch):
    calls, run, x = [], native.mamba, torch.randn(1, 3, 96)
    monkeypatch.setattr(native, "mamba", lambda *args, **kwargs: calls.append(1) or run(*args, **kwargs))
    with torch.no_grad():
        fast = wide(x)[0]
    torch.testing.assert_close(fast, wide(x)[0], rtol=1e-4, atol=1e-5)
    assert calls == [1]  # not with a gradient
