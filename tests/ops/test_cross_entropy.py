import pytest
import torch

from mvar.ops import cross_entropy
from mvar.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference

N, C, V = 23, 6, 11


def head(dtype):
    rng = torch.Generator().manual_seed(0)
    x, weight, bias = (2 * torch.randn(shape, generator=rng) for shape in ((N, C), (V, C), (V,)))
    target = torch.randint(V, (N,), generator=rng)
    return [t.to(dtype).requires_grad_() for t in (x, weight, bias)], target, torch.randn(N, generator=rng)


@pytest.mark.parametrize("rows", [1, 5, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_and_gradients_equal_those_of_full_logits(rows, smoothing, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", rows * V)
    tensors, target, weights = head(torch.float64)
    results = []
    for function in (linear_cross_entropy, linear_cross_entropy_reference):
        nll, correct = function(*tensors, target, smoothing)
        results.append((nll, correct, *torch.autograd.grad((nll * weights).sum(), tensors)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert 0 < results[0][1].sum() < N


def test_bfloat16_weights_give_float32_losses_and_bfloat16_gradients():
    tensors, target, _ = head(torch.bfloat16)
    exact, _, _ = head(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        nll, _ = linear_cross_entropy(*tensors, target)
        nll.sum().backward()
    expected, _ = linear_cross_entropy(*exact, target)
    expected.sum().backward()
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), expected, rtol=0.02, atol=0.1)
    for low, full in zip(tensors, exact, strict=True):
        assert low.grad.dtype == torch.bfloat16
        assert (low.grad - full.grad).norm() < 0.02 * full.grad.norm()


def test_the_largest_tensor_is_a_chunk(monkeypatch):
    """Every tensor that forward and backward make is seen: none has all tokens' logits."""
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 4 * V)
    tensors, target, _ = head(torch.float32)

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            outputs = result if isinstance(result, (list, tuple)) else [result]
            self.numel = max([self.numel, *(t.numel() for t in outputs if isinstance(t, torch.Tensor))])
            return result

    with Largest() as seen:
        linear_cross_entropy(*tensors, target)[0].sum().backward()
    assert seen.numel == N * C
