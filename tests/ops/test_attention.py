import pytest
import torch

from mvar.ops import attention
from mvar.ops.attention import GROUP_TOKENS, attention_reference, block_causal_attention, intra_scale_attention

# One group, groups that meet at GROUP_TOKENS, one scale above it, and scales above it between small ones.
AREAS = [(1, 4, 9, 16), (1, 4, 9, 16, 36, 64), (100,), (1, 100, 4), (GROUP_TOKENS - 4, 4, 1), (1, 6, 20, 6)]
SCALE = 0.3
FUNCTIONS = {"intra": intra_scale_attention, "block-causal": block_causal_attention}


def naive(kind, q, k, v, areas):
    return attention_reference(q, k, v, areas, SCALE, torch.eq if kind == "intra" else torch.ge)


def inputs(areas):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, sum(areas), 8, generator=g, dtype=torch.float64).requires_grad_() for _ in "qkv"]


def pairs():
    return pytest.mark.parametrize(("kind", "areas"), [(kind, areas) for kind in FUNCTIONS for areas in AREAS])


@pytest.mark.parametrize("plain_keys", [GROUP_TOKENS, attention.PLAIN_KEYS])
@pairs()
def test_values_and_gradients_equal_one_dense_masked_softmax(kind, areas, plain_keys, monkeypatch):
    monkeypatch.setattr(attention, "PLAIN_KEYS", plain_keys)
    qkv = inputs(areas)
    out, expected = FUNCTIONS[kind](*qkv, areas, SCALE), naive(kind, *qkv, areas)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(y.sin().sum(), qkv) for y in (out, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("areas", [areas for areas in AREAS if len(areas) > 1])
def test_block_causal_with_carried_keys_equals_one_call(areas):
    q, k, v = inputs(areas)
    whole = naive("block-causal", q, k, v, areas)
    for split in range(1, len(areas)):
        n = sum(areas[:split])
        first = block_causal_attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], areas[:split], SCALE)
        second = block_causal_attention(q[:, :, n:], k, v, areas[split:], SCALE)
        out = torch.cat([first, second], dim=2)
        torch.testing.assert_close(out, whole, rtol=0, atol=1e-12)
        grads = [torch.autograd.grad(y.sin().sum(), (q, k, v), retain_graph=True) for y in (out, whole)]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_the_definition_sees_what_it_should():
    q, k, v = (t.detach() for t in inputs((1, 2, 1)))
    scores = SCALE * torch.einsum("bhqd,bhtd->bhqt", q, k)
    for kind, seen in (
        ("intra", [[0], [1, 2], [1, 2], [3]]),
        ("block-causal", [[0], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]),
    ):
        rows = [scores[:, :, i, keys].softmax(-1)[..., None, :] @ v[:, :, keys] for i, keys in enumerate(seen)]
        torch.testing.assert_close(naive(kind, q, k, v, (1, 2, 1)), torch.cat(rows, dim=2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "areas"), [("intra", AREAS[0]), ("block-causal", AREAS[3])])
def test_bfloat16_stays_near(kind, areas):
    qkv = [t.detach().bfloat16() for t in inputs(areas)]
    out = FUNCTIONS[kind](*qkv, areas, SCALE)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), naive(kind, *(t.double() for t in qkv), areas), rtol=0, atol=0.05)
