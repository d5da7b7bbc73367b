import pytest
import torch

from mvar.ops import attention
from mvar.ops.attention import GROUP_TOKENS, scale_attention, scale_attention_reference

# One group, groups that meet at GROUP_TOKENS, one scale above it, and scales above it between small ones.
AREAS = [(1, 4, 9, 16), (1, 4, 9, 16, 36, 64), (100,), (1, 100, 4), (GROUP_TOKENS - 4, 4, 1), (1, 6, 20, 6)]
SCALE = 0.3


def inputs(areas):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, sum(areas), 8, generator=g, dtype=torch.float64).requires_grad_() for _ in "qkv"]


def test_the_definition_sees_what_it_should():
    q, k, v = (t.detach() for t in inputs((1, 2, 1)))
    scores = SCALE * torch.einsum("bhqd,bhtd->bhqt", q, k)
    seen_by = {
        "intra": [[0], [1, 2], [1, 2], [3]],
        "recent": [[0], [0, 1, 2], [0, 1, 2], [1, 2, 3]],
        "global": [[0], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3]],
    }
    for reach, seen in seen_by.items():
        rows = [scores[:, :, i, keys].softmax(-1)[..., None, :] @ v[:, :, keys] for i, keys in enumerate(seen)]
        found = scale_attention_reference(q, k, v, (1, 2, 1), SCALE, reach)
        torch.testing.assert_close(found, torch.cat(rows, dim=2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("plain_keys", [GROUP_TOKENS, attention.PLAIN_KEYS])
@pytest.mark.parametrize("reach", ["intra", "recent", "global"])
@pytest.mark.parametrize("areas", AREAS)
def test_values_and_gradients_equal_one_dense_masked_softmax(areas, reach, plain_keys, monkeypatch):
    monkeypatch.setattr(attention, "PLAIN_KEYS", plain_keys)
    qkv = inputs(areas)
    results = [f(*qkv, areas, SCALE, reach) for f in (scale_attention, scale_attention_reference)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(y.sin().sum(), qkv) for y in results]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reach", ["recent", "global"])
@pytest.mark.parametrize("areas", [areas for areas in AREAS if len(areas) > 1])
def test_carried_keys_equal_one_call(areas, reach):
    q, k, v = inputs(areas)
    expected = scale_attention_reference(q, k, v, areas, SCALE, reach)
    for split in range(1, len(areas)):
        n = sum(areas[:split])
        carried = n - (areas[split - 1] if reach == "recent" else n)
        first = scale_attention(q[:, :, :n], k[:, :, :n], v[:, :, :n], areas[:split], SCALE, reach)
        for f in (scale_attention, scale_attention_reference):
            rest = f(q[:, :, n:], k[:, :, carried:], v[:, :, carried:], areas[split:], SCALE, reach)
            out = torch.cat([first, rest], dim=2)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
            grads = [torch.autograd.grad(y.sin().sum(), (q, k, v), retain_graph=True) for y in (out, expected)]
            torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gradient", [False, True])
def test_the_scale_before_costs_no_scores_of_earlier_ones(gradient, monkeypatch):
    """Queries times keys of every call: what a scale and the one before it need, and small scales together."""
    scores, attend = [], attention._attend
    monkeypatch.setattr(
        attention, "_attend", lambda q, k, *rest: scores.append((q.shape[2], k.shape[2])) or attend(q, k, *rest)
    )
    areas = (1, 4, 9, 100, 121, 144)
    qkv = [t.requires_grad_(gradient) for t in inputs(areas)]
    scale_attention(*qkv, areas, SCALE, "recent")
    assert scores == [(14, 14), (100, 109), (121, 221), (144, 265)]
