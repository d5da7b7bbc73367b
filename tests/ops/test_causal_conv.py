import pytest
import torch
from torch.nn import functional as F

from mvar.ops.mamba import causal_conv, causal_conv_reference

SPLITS = [(1, 4, 9, 16), (7,), (1, 1, 1), (30, 2)]  # ragged, shorter and longer than the kernel


def inputs(length):
    g = torch.Generator().manual_seed(0)
    shapes = (2, length, 6), (6, 4), (6,)
    return [torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("split", SPLITS)
def test_pieces_equal_whole_in_values_and_gradients(split):
    x, weight, bias = inputs(sum(split))
    pieces, tail = [], None
    for piece in x.split(split, dim=1):
        y, tail = causal_conv(piece, weight, bias, tail)
        pieces.append(y)
    pieces, whole = torch.cat(pieces, 1), causal_conv_reference(F.pad(x, (0, 0, 3, 0)), weight, bias)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(y.sin().sum(), (x, weight, bias)) for y in (pieces, whole)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_tail_is_the_last_tokens_before_the_convolution():
    x, weight, _ = inputs(5)
    torch.testing.assert_close(causal_conv(x, weight)[1], x[:, -3:], rtol=0, atol=0)
