"""Convolution, scan, gate and norm between Mamba-2's projections: every implementation against the definition."""

import pytest
import torch
from torch.nn import functional as F

from mvar.nn.mamba2 import Mamba2
from mvar.ops import native
from mvar.ops.mamba import MambaState, causal_conv, causal_conv_reference, mamba, ssd_reference


def random_layer(width=96, state_size=32, dtype=torch.float32):
    """Of a shape that the compiled passes take."""
    layer, rng = Mamba2(width, state_size=state_size, head_dim=64).to(dtype), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return layer


def state_of(layer, batch):
    rng = torch.Generator().manual_seed(1)
    return MambaState(*(torch.randn(t.shape, generator=rng, dtype=t.dtype) for t in layer.initial_state(batch)))


def results(mode, layer, projected, state, monkeypatch):
    monkeypatch.setenv("MVAR_OPS", mode)
    with torch.no_grad():
        y, after = mamba(projected, layer.weights, state)
    return y, *after


@pytest.fixture
def wide(compiled_passes):
    return random_layer()


@pytest.mark.parametrize("length", [1, 3, 5, 32, 33, 100])
@pytest.mark.parametrize(("batch", "begun"), [(1, False), (3, True)])
def test_compiled_passes_give_the_same(wide, length, batch, begun, monkeypatch):
    projected = 2 * torch.randn(batch, length, wide.in_proj.out_features)
    state = state_of(wide, batch) if begun else None
    found, expected = (results(mode, wide, projected, state, monkeypatch) for mode in ("native", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["torch", "native"])
@pytest.mark.parametrize("steps", [None, 1e-6, 0.3, 10.0])
def test_every_mode_is_as_exact_as_float32_allows(mode, steps, monkeypatch, request):
    """Heads that keep all to heads that keep nothing, steps from 1e-6 to 10, mixed at random where None."""
    if mode == "native":
        request.getfixturevalue("compiled_passes")
    rng, A = torch.Generator().manual_seed(0), 10.0 ** torch.arange(-3, 9, dtype=torch.float64)
    low = random_layer(32 * len(A), 16)
    with torch.no_grad():
        low.A_log.copy_(A.log())
        low.dt_bias.zero_()
    exact = random_layer(32 * len(A), 16, torch.float64)
    exact.load_state_dict(low.state_dict())
    projected, state = torch.randn(2, 70, low.in_proj.out_features, generator=rng), state_of(low, 2)
    dt = 10 ** (7 * torch.rand(2, 70, len(A), generator=rng, dtype=torch.float64) - 6)
    dt = dt if steps is None else torch.full_like(dt, steps)
    projected[..., -len(A) :] = dt.expm1().log()  # the inverse of softplus
    y, _, ssm = results(mode, low, projected, state, monkeypatch)
    exact_state = MambaState(*(t.double() for t in state))
    expected_y, _, expected_ssm = results("reference", exact, projected.double(), exact_state, monkeypatch)
    heads = [(t.unflatten(2, (len(A), 64)).transpose(1, 2)) for t in (y, expected_y)]
    for found, expected in (heads, (ssm, expected_ssm)):
        apart, size = ((t.abs().amax((0, 2, 3))) for t in (found.double() - expected, expected))
        assert (apart / size).max() < 5e-6


def test_compiled_bfloat16_tokens_keep_a_float32_state(wide, monkeypatch):
    projected, state = torch.randn(2, 50, wide.in_proj.out_features).bfloat16(), state_of(wide, 2)
    found = results("native", wide, projected, state, monkeypatch)
    expected = results("torch", wide, projected.float(), state, monkeypatch)
    assert [t.dtype for t in found] == [torch.bfloat16, torch.float32, torch.float32]
    assert (found[0].float() - expected[0]).norm() < 0.01 * expected[0].norm()
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-4, atol=1e-5)


def test_compiled_nan_stays_nan(wide, monkeypatch):
    """A broken network must show as broken, and no earlier than where it breaks."""
    projected = torch.randn(1, 40, wide.in_proj.out_features).bfloat16()
    projected[:, 20, 2 * 192 + 32 : 2 * 192 + 64] = float("nan")  # a query
    y, _, ssm = results("native", wide, projected, None, monkeypatch)
    assert y[:, :20].isfinite().all()
    assert y[:, 20:24].isnan().all()  # as far as the convolution carries it
    assert ssm.isfinite().all()


def test_compiled_threads_and_denormals_change_nothing(wide, monkeypatch):
    projected, threads, found = torch.randn(3, 45, wide.in_proj.out_features), torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            found.append(results("native", wide, projected[:, ::3], None, monkeypatch))  # rows that do not lie together
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))
    assert (torch.full((4096,), 1e-40) * 0.5 > 0).all(), "denormals are ordinary afterwards"


@pytest.mark.parametrize("mode", ["native", "torch"])
def test_tokens_in_two_calls_are_tokens_in_one_and_states_stay(wide, mode, monkeypatch):
    projected = torch.randn(2, 45, wide.in_proj.out_features)
    whole, *after = results(mode, wide, projected, None, monkeypatch)
    first, *between = results(mode, wide, projected[:, :7], None, monkeypatch)
    before = [t.clone() for t in between]
    second, *end = results(mode, wide, projected[:, 7:], MambaState(*between), monkeypatch)
    assert all(map(torch.equal, before, between))
    torch.testing.assert_close(torch.cat((first, second), dim=1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end, after, rtol=1e-4, atol=1e-5)


def test_a_layer_takes_the_compiled_passes_without_a_gradient(wide, monkeypatch):
    calls, run, x = [], native.mamba, torch.randn(1, 3, 96)
    monkeypatch.setattr(native, "mamba", lambda *args, **kwargs: calls.append(1) or run(*args, **kwargs))
    with torch.no_grad():
        fast = wide(x, (3,))[0]
    torch.testing.assert_close(fast, wide(x, (3,))[0], rtol=1e-4, atol=1e-5)
    assert calls == [1]


# --- both directions ---


def read_twice(layer, x, areas, state):
    """The definition: each scale token by token, forwards and backwards, one after the other."""
    outs = []
    for piece in x.split(areas, dim=1):
        there, after = mamba(layer.in_proj(piece), layer.weights, state, ssd_reference)
        back, _ = mamba(layer.in_proj(piece.flip(1)), layer.weights, state, ssd_reference)
        outs.append(layer.out_proj(there / 2 + back.flip(1) / 2))
        state = after
    return torch.cat(outs, dim=1), state


@pytest.mark.parametrize("begun", [False, True])
def test_both_directions_equal_two_scans_of_each_scale(begun):
    areas = (1, 2, 6, 80)
    layer = random_layer(32, 16, torch.float64)
    layer.bidirectional = True
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, sum(areas), 32, generator=g, dtype=torch.float64, requires_grad=True)
    state = MambaState(*(t.requires_grad_() for t in state_of(layer, 2))) if begun else None
    inputs = [x, *layer.parameters(), *(state or ())]
    outs = [layer(x, areas, state), read_twice(layer, x, areas, state)]
    torch.testing.assert_close(*outs, rtol=1e-10, atol=1e-10)
    slopes = [torch.autograd.grad(y.sin().sum() + sum(t.sin().sum() for t in after), inputs) for y, after in outs]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-9)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in outs[0][1]), "no view of both directions"


# --- the short convolution ---

SPLITS = [(1, 4, 9, 16), (7,), (1, 1, 1), (30, 2)]  # ragged, shorter and longer than the kernel


def conv_inputs(length):
    g = torch.Generator().manual_seed(0)
    shapes = (2, length, 6), (6, 4), (6,)
    return [torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("split", SPLITS)
def test_pieces_equal_whole_in_values_and_gradients(split):
    x, weight, bias = conv_inputs(sum(split))
    pieces, tail = [], None
    for piece in x.split(split, dim=1):
        y, tail = causal_conv(piece, weight, bias, tail)
        pieces.append(y)
    pieces, whole = torch.cat(pieces, 1), causal_conv_reference(F.pad(x, (0, 0, 3, 0)), weight, bias)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(y.sin().sum(), (x, weight, bias)) for y in (pieces, whole)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_tail_is_the_last_tokens_before_the_convolution():
    x, weight, _ = conv_inputs(5)
    torch.testing.assert_close(causal_conv(x, weight)[1], x[:, -3:], rtol=0, atol=0)
