import pytest
import torch

from mvar.ops.gated_norm import gated_rms_norm, gated_rms_norm_reference


def everything(function, tensors):
    """Value and all gradients."""
    y = function(*tensors, 1e-5)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weights).sum(), tensors)]


def inputs(dtype):
    g = torch.Generator().manual_seed(0)
    return [
        torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in [(2, 9, 12)] * 2 + [12]
    ]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_are_those_of_the_definition(dtype, near):
    tensors = inputs(dtype)
    exact = everything(gated_rms_norm_reference, [t.detach().double().requires_grad_() for t in tensors])
    for name, a, b in zip(("y", "dx", "dz", "dweight"), everything(gated_rms_norm, tensors), exact, strict=True):
        assert a.dtype == dtype
        error = (a.double() - b).norm() / b.norm()
        assert error < near, f"{name}: relative error {error:.1e}"
