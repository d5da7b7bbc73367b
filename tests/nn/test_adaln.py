import pytest
import torch
from torch.nn import functional as F

from mvar.nn import adaln
from mvar.ops import native


@pytest.fixture(params=["compiled", "PyTorch"])
def passes(request, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(native, "choose", lambda: native.Choice(None, "a test"))
    elif native.choose().library is None:
        pytest.skip(native.choose().reason)


def close(actual, expected, dtype):
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5)


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("width", [16, 21, 272])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_gated_sum_are_their_definitions(dtype, width):
    x, scale, shift, gate = torch.randn(3, 5, width) + 2, *torch.randn(3, 3, width).unbind(1)
    y = torch.randn(3, 5, width).to(dtype)

    def norm(t):
        return F.layer_norm(t, (width,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    with torch.no_grad():
        total = x + gate[:, None] * y.float()
        close(adaln.adaln(x, scale, shift, dtype), norm(x), dtype)
        close(adaln.adaln(x, scale.clone(), shift, dtype), norm(x), dtype)
        close(adaln.gated_sum(x, gate, y), total, torch.float32)
        both = adaln.gated_sum_adaln(x, gate, y, scale, shift)
        close(both[0], total, torch.float32)
        close(both[1], norm(total), dtype)


def test_with_a_gradient_all_is_differentiable():
    x, y = torch.randn(2, 3, 16, requires_grad=True), torch.randn(2, 3, 16, requires_grad=True)
    gate, scale, shift = (torch.randn(2, 16, requires_grad=True) for _ in range(3))
    total, normalised = adaln.gated_sum_adaln(x, gate, y, scale, shift)
    (total.sum() + normalised.square().sum() + adaln.gated_sum(x, gate, y).square().sum()).backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in (x, y, gate, scale, shift))
