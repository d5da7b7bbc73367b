import pytest
import torch

from mvar.ops.ssd_chunk import ssd_chunk
from mvar.ops.ssd_reference import ssd_reference


def inputs(Q, batch=2, heads=3, head_dim=4, state_size=5, step=0.0):
    rng = torch.Generator().manual_seed(Q)

    def normal(*shape):
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    dt = torch.nn.functional.softplus(normal(batch, Q, heads) + step)
    state = normal(batch, heads, head_dim, state_size)
    x, key, query = normal(batch, Q, heads, head_dim), normal(batch, Q, state_size), normal(batch, Q, state_size)
    return x, dt, -normal(heads).exp(), key, query, state


def run(x, dt, A, key, query, state):
    """With the state in the shape of the other scans."""
    B, h, P, N = state.shape
    y, state_BNE = ssd_chunk(x, dt, A, key, query, state.permute(0, 3, 1, 2).flatten(2))
    return y, state_BNE.view(B, N, h, P).permute(0, 2, 3, 1)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("Q", [1, 2, 17, 64])
def test_it_equals_the_recurrence(Q, batch):
    tensors = inputs(Q, batch)
    for fast, naive in zip(run(*tensors), ssd_reference(*tensors), strict=True):
        torch.testing.assert_close(fast, naive, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("step", [-200.0, 50.0])
def test_steps_of_any_length_stay_finite(step):
    """Steps so small that nothing is written, and so large that all is forgotten at once."""
    tensors = [t.float() for t in inputs(40, step=step)]
    y, state = run(*tensors)
    expected_y, expected_state = ssd_reference(*tensors)
    torch.testing.assert_close(y, expected_y, rtol=1e-4, atol=1e-4 * float(expected_y.abs().max()))
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-4 * float(expected_state.abs().max()))


def test_bfloat16_tokens_keep_a_float32_state():
    x, dt, A, key, query, state = (t.float() for t in inputs(40, step=-3))
    y, after = run(x.bfloat16(), dt, A, key.bfloat16(), query.bfloat16(), state)
    expected_y, expected_after = ssd_reference(x, dt, A, key, query, state)
    assert (y.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    assert (y.float() - expected_y).norm() < 0.01 * expected_y.norm()
    assert (after - expected_after).norm() < 0.01 * expected_after.norm()
