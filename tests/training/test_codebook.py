import math

import pytest
import torch

from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.quantizer import MultiScaleQuantizer
from mvar.training.tokenizer.codebook import count_tokens, revive, start_from_data, usage


def build(vocab_size=32, sides=(1, 2, 4)):
    torch.manual_seed(0)
    return MultiScaleQuantizer(
        TokenizerConfig(channels=32, multipliers=(1,), latent_channels=8, vocab_size=vocab_size, sides=list(sides))
    )


def latents(batch=64):
    return 5 + torch.randn(batch, 8, 4, 4, generator=torch.Generator().manual_seed(1))


def rng():
    return torch.Generator().manual_seed(2)


def nearest_distance(codes, vectors_BZhw):
    """How far each code is from the nearest vector of a map, in units of the map's spread."""
    vectors = vectors_BZhw.permute(0, 2, 3, 1).flatten(0, 2)
    return torch.cdist(codes, vectors).min(dim=1).values / vectors.std()


@pytest.mark.parametrize("vocab_size", [30, 32])
def test_the_codebook_starts_with_each_scales_residuals(vocab_size):
    quantizer, f = build(vocab_size), latents()
    start_from_data(quantizer, f, rng())
    f_hat, filled = torch.zeros_like(f), 0
    for k in range(3):
        rest = quantizer.input_of(f - f_hat, k)
        share = math.ceil(vocab_size * (k + 1) / 3) - filled
        assert abs(share - vocab_size / 3) < 1
        own = quantizer.codebook[filled : filled + share]
        assert nearest_distance(own, rest).max() < 0.1
        filled += share
        # The residuals of scale k + 1 are those that the codes of the scales so far leave.
        with torch.no_grad():
            partial = build(vocab_size)
            partial.load_state_dict(quantizer.state_dict())
            partial.codebook[filled:] = 1e3
            f_hat = partial.add(f_hat, partial.lookup(partial.nearest(rest, k), k), k)
    assert filled == vocab_size
    assert len(quantizer.codebook.detach().unique(dim=0)) == vocab_size


def test_revival_moves_the_dead_codes_only_an_equal_number_to_each_scale():
    quantizer = build()
    residuals = [torch.full((4, 8, s, s), 100.0 * (k + 1)) for k, s in enumerate((1, 2, 4))]
    for map_BZhw in residuals:
        map_BZhw += torch.randn(map_BZhw.shape, generator=rng())
    counts = torch.full((3, 32), 10)
    dead = [0, 3, 5, 7, 11, 13, 17, 19, 31]
    counts[:, dead] = 0
    counts[0, 3] = 1  # used a little: its mean share 0.0014 is below 0.1 / 32
    before = quantizer.codebook.detach().clone()
    moved = revive(quantizer, counts, residuals, 0.1, rng())
    assert sorted(moved.tolist()) == dead
    alive = [v for v in range(32) if v not in dead]
    assert torch.equal(quantizer.codebook[alive], before[alive])
    scale = (quantizer.codebook[dead].detach().mean(dim=1) / 100).round()
    assert scale.unique(return_counts=True)[1].tolist() == [3, 3, 3]
    assert len(quantizer.codebook.detach().unique(dim=0)) == 32


def test_a_code_that_one_scale_lives_on_is_not_dead():
    quantizer = build()
    counts = torch.zeros(3, 32, dtype=torch.long)
    counts[0, 4], counts[1:, 5] = 1, 10_000  # the coarse scale has few tokens, but its share counts the same
    moved = revive(quantizer, counts, [latents()] * 3, 0.03, rng())
    assert sorted(moved.tolist()) == [v for v in range(32) if v not in (4, 5)]


def test_usage_and_perplexity_of_known_counts():
    counts = torch.tensor([[4, 4, 4, 4], [9, 0, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0]])
    used, perplexity = usage(counts)
    assert used == [1.0, 0.25, 0.5, 0.0]
    assert perplexity == pytest.approx([4.0, 1.0, 4 / 3**0.75, 1.0])
    tokens = [torch.tensor([[2], [2]]), torch.tensor([[0, 1, 1, 3], [3, 3, 0, 0]])]
    assert count_tokens(tokens, 5).tolist() == [[0, 0, 2, 0, 0], [3, 2, 0, 3, 0]]
    # The second image keeps one scale.
    assert count_tokens(tokens, 5, torch.tensor([2, 1])).tolist() == [[0, 0, 2, 0, 0], [1, 2, 0, 1, 0]]
