import pytest
import torch

from mvar.nn import mamba2
from mvar.nn.mamba2 import Mamba2, MambaState


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
