import math

import pytest
import torch

from mvar.ops.noise import gumbel, key_bits, uniform, uniform_at


@pytest.mark.parametrize("draw", [uniform, gumbel])
def test_noise_belongs_to_the_image(draw):
    shape = (7, 33)  # an odd count
    whole = draw(3, [0, 1, 2, 10**12], 5, shape)
    assert whole.shape == (4, *shape)
    assert whole.dtype == torch.float32
    assert torch.equal(draw(3, [10**12, 2], 5, shape), whole[[3, 2]])
    assert torch.equal(draw(3, [1], 5, shape)[0], whole[1])
    assert not torch.equal(draw(2**64 - 1, [2**64 - 1], 5, shape), draw(0, [0], 5, shape))


def test_noise_never_changes():
    # Written down once: seeds must keep their images in every later version.
    pinned = [0.8319997191429138, 0.029600292444229126, 0.6679503917694092, 0.5085508227348328]
    assert uniform(7, [3], 2, (4,))[0].tolist() == pinned


@pytest.mark.parametrize("stream", [3, 2**64 - 1])
def test_integers_of_other_devices_give_the_same_bits(stream):
    seed, index, shape = 2**63 - 5, (3, 2**64 - 1), (5, 101)
    everywhere, keys = uniform(seed, index, stream, shape), key_bits(seed, index)
    assert torch.equal(uniform_at(keys, stream, shape), everywhere)
    at = torch.randint(0, 101, (2, 5, 7))
    assert torch.equal(uniform_at(keys, stream, shape, at), everywhere.gather(-1, at))


def test_seed_image_stream_and_position_give_uncorrelated_uniform_numbers():
    base = {"seed": 5, "index": [8], "stream": 2, "shape": (200_000,)}
    u = uniform(**base)[0].double()
    assert abs(u.mean() - 1 / 2) < 5 * math.sqrt(1 / 12 / len(u))
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / len(u))
    changes = ({"seed": 6}, {"index": [9]}, {"stream": 3}, {"seed": 8, "index": [5]})
    for other in (u.roll(1), *(uniform(**base | change)[0].double() for change in changes)):
        correlation = torch.corrcoef(torch.stack((u, other)))[0, 1]
        assert abs(correlation) < 5 / math.sqrt(len(u))


def test_gumbel_max_draws_from_softmax():
    u = uniform(2, [4], 1, (1000,)).double()
    torch.testing.assert_close(gumbel(2, [4], 1, (1000,)).double(), -torch.log(-torch.log1p(-u)), rtol=1e-5, atol=1e-6)
    logits = torch.tensor([2.0, 0.5, -1.0, -torch.inf])
    n = 200_000
    drawn = (logits + gumbel(1, [0], 0, (n, 4))[0]).argmax(-1)
    frequency = torch.bincount(drawn, minlength=4) / n
    p = logits.softmax(-1)
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


def test_extremes_stay_finite(monkeypatch):
    class Extremes:
        def __init__(self, **_):
            pass

        def random_raw(self, n):
            return torch.tensor([0xFFFFFFFF], dtype=torch.int64).numpy().view("uint64").repeat(n)  # all ones, zeros

    monkeypatch.setattr("mvar.ops.noise.Philox", Extremes)
    u = uniform(0, [0], 0, (2,))[0]
    assert 0 < u.min() < u.max() < 1
    assert gumbel(0, [0], 0, (2,)).isfinite().all()


def test_numbers_that_are_no_words_are_refused():
    for arguments in ((-1, [0], 0, (2,)), (0, [0, -3], 0, (2,)), (0, [0], 2**64, (2,))):
        with pytest.raises(ValueError, match=r" = .*: give an integer from 0 to 2\*\*64 - 1"):
            uniform(*arguments)
