import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mvar.nn.linear import Linear
from mvar.ops.linear import can_prepack, convolution_relu, gelu_linear

needs_bfloat16 = pytest.mark.skipif(
    not can_prepack(torch.zeros(2, 2, dtype=torch.bfloat16)), reason="this processor does not multiply bfloat16"
)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    linear = Linear(48, 80).bfloat16()
    torch.nn.init.normal_(linear.weight)
    torch.nn.init.normal_(linear.bias)
    return linear


def test_gelu_and_a_linear_layer_keep_only_their_input():
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 6), (4, 6), (4,)))
    inputs = [t.requires_grad_() for t in (x, weight, bias)]
    assert torch.equal(gelu_linear(*inputs), F.linear(F.gelu(x, approximate="tanh"), weight, bias))
    assert torch.autograd.gradcheck(gelu_linear, inputs)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()), lambda _: None):
        gelu_linear(*inputs)
    assert kept == [x.data_ptr(), weight.data_ptr()]


@needs_bfloat16
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (2, 33)])
def test_prepacked_weights_give_the_same(layer, shape, gelu):
    x = torch.randn(*shape, 48)
    exact = F.linear(x.bfloat16().float(), layer.weight.float(), layer.bias.float())
    exact = F.gelu(exact, approximate="tanh") if gelu else exact
    for pack in (layer.unpack, layer.prepack):
        pack()
        with torch.no_grad():
            y = layer(x, gelu=gelu)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), exact, rtol=2**-7, atol=0.05)
    with pytest.raises(RuntimeError, match="a prepacked weight has no gradient"):
        layer(x.requires_grad_())


@needs_bfloat16
def test_what_is_saved_is_plain_and_comes_back(layer):
    before = layer.weight.detach().clone()
    layer.prepack()
    assert layer.weight.is_mkldnn
    assert torch.equal(layer.state_dict()["weight"], before)
    layer.unpack()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("mode", ["auto", "reference"])
def test_float32_and_the_reference_stay_plain(layer, mode, monkeypatch):
    monkeypatch.setenv("MVAR_OPS", mode)
    layer = layer.float() if mode == "auto" else layer
    layer.prepack()
    assert not layer.weight.is_mkldnn


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "bias"), [((1, 1), 1, 0, True), ((1, 7), 1, (0, 3), True), ((3, 3), 2, 0, False)]
)
@torch.inference_mode()
def test_convolution_relu_is_its_definition(kernel, stride, padding, bias, dtype, mode, monkeypatch):
    monkeypatch.setenv("MVAR_OPS", mode)
    random = torch.Generator().manual_seed(0)
    layer = nn.Conv2d(16, 24, kernel, stride, padding, bias=bias).to(dtype, memory_format=torch.channels_last)
    x = torch.randn(2, 16, 9, 11, generator=random).to(dtype, memory_format=torch.channels_last)
    weight, offset = layer.weight.double(), layer.bias.double() if bias else None
    expected = F.conv2d(x.double(), weight, offset, stride, padding).clamp(min=0)
    found = convolution_relu(x, layer)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found == 0).any()
    rounding = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding)
