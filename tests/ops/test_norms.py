import pytest
import torch
from torch.nn import functional as F

from mvar.ops.norms import adaln, gated_rms_norm, gated_rms_norm_reference, gated_sum, gated_sum_adaln


def close(actual, expected, dtype):
    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5)


@pytest.mark.parametrize("mode", ["auto", "torch"])
@pytest.mark.parametrize("width", [21, 272])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adaln_and_gated_sum_are_their_definitions(dtype, width, mode, monkeypatch):
    monkeypatch.setenv("MVAR_OPS", mode)
    x, scale, shift, gate = torch.randn(3, 5, width) + 2, *torch.randn(3, 3, width).unbind(1)
    y = torch.randn(3, 5, width).to(dtype)

    def norm(t):
        return F.layer_norm(t, (width,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    with torch.no_grad():
        total = x + gate[:, None] * y.float()
        close(adaln(x, scale, shift, dtype), norm(x), dtype)
        close(adaln(x, scale.clone(), shift, dtype), norm(x), dtype)  # vectors that do not lie together
        close(gated_sum(x, gate, y), total, torch.float32)
        both = gated_sum_adaln(x, gate, y, scale, shift)
        close(both[0], total, torch.float32)
        close(both[1], norm(total), dtype)


def everything(function, tensors):
    """Value and all gradients."""
    y = function(*tensors, 1e-5)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weights).sum(), tensors)]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_gated_rms_norm_is_its_definition(dtype, near):
    rng = torch.Generator().manual_seed(0)
    x, z, weight = (
        torch.randn(shape, generator=rng).to(dtype).requires_grad_() for shape in ((2, 9, 12), (2, 9, 12), (12,))
    )
    exact = everything(gated_rms_norm_reference, [t.detach().double().requires_grad_() for t in (x, z, weight)])
    names = ("y", "dx", "dz", "dweight")
    for name, a, b in zip(names, everything(gated_rms_norm, (x, z, weight)), exact, strict=True):
        assert a.dtype == dtype
        error = (a.double() - b).norm() / b.norm()
        assert error < near, f"{name}: relative error {error:.1e}"
