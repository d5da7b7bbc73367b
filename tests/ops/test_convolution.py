import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mvar.ops import convolution
from mvar.ops.convolution import convolution_relu


@pytest.mark.parametrize("one_pass", [None, False])  # as this machine would have it, and plainly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "bias"), [((1, 1), 1, 0, True), ((1, 7), 1, (0, 3), True), ((3, 3), 2, 0, False)]
)
@torch.inference_mode()
def test_is_a_convolution_without_what_is_negative(kernel, stride, padding, bias, dtype, one_pass, monkeypatch):
    if one_pass is False:
        monkeypatch.setattr(convolution, "can_arrange", lambda weight: False)
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
