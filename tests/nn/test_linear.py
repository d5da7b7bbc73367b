import pytest
import torch
from torch.nn import functional as F

from mvar.nn.linear import Linear
from mvar.ops.linear import can_arrange

pytestmark = pytest.mark.skipif(
    not can_arrange(torch.zeros(2, 2, dtype=torch.bfloat16)), reason="this processor does not multiply bfloat16"
)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    linear = Linear(48, 80).bfloat16()
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    return linear


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 33)])
def test_arranged_weights_give_the_same(layer, shape, gelu):
    x = torch.randn(*shape, 48)
    exact = F.linear(x.bfloat16().float(), layer.weight.float(), layer.bias.float())
    exact = F.gelu(exact, approximate="tanh") if gelu else exact
    for fast in (False, True):
        layer.arrange(fast)
        with torch.no_grad():
            y = layer(x, gelu=gelu)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), exact, rtol=2**-7, atol=0.05)


def test_what_is_saved_is_plain_and_comes_back(layer):
    before = layer.weight.detach().clone()
    layer.arrange(fast=True)
    assert layer.weight.is_mkldnn
    assert not layer.weight.requires_grad
    saved = layer.state_dict()["weight"]
    assert not saved.is_mkldnn
    assert torch.equal(saved, before)
    layer.arrange(fast=True)  # again: nothing to do
    layer.arrange(fast=False)
    assert torch.equal(layer.weight, before)


def test_float32_stays_as_it_is(layer):
    layer.float().arrange(fast=True)
    assert not layer.weight.is_mkldnn
