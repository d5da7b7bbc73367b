import math
from collections import Counter

import pytest
import torch

from mvar.evaluation.tokens import bits_per_token, usage
from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer


def test_usage_equals_counting_by_hand():
    tokens = torch.randint(20, (7, 9), generator=torch.Generator().manual_seed(0)) ** 2 // 20
    counts = Counter(tokens.flatten().tolist())
    entropy = -sum(n / 63 * math.log(n / 63) for n in counts.values())
    used, perplexity = usage(tokens, 50)
    assert used == len(counts)
    assert perplexity == pytest.approx(math.exp(entropy))
    assert usage(torch.arange(8), 8) == (8, pytest.approx(8.0))
    assert usage(torch.full((3, 4), 5), 8) == (1, pytest.approx(1.0))
    for bad in (torch.tensor([8]), torch.tensor([-1]), torch.tensor([], dtype=torch.long)):
        with pytest.raises(ValueError, match="all from 0 to 7"):
            usage(bad, 8)


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    shared = {"vocab_size": 11, "latent_channels": 8, "sides": [1, 2, 3]}
    tokenizer = Tokenizer(TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **shared)).eval()
    generator = Generator(GeneratorConfig(depth=1, width=64, heads=2, num_classes=4, **shared)).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
        generator.head.weight.mul_(4)
    return tokenizer, generator


@torch.no_grad()
def test_bits_equal_a_sum_over_single_tokens(networks):
    tokenizer, generator = networks
    tokens = [torch.randint(11, (5, area)) for area in (1, 4, 9)]
    labels = torch.tensor([0, 3, 1, 2, 2])
    bits = torch.zeros(14, dtype=torch.float64)
    for i in range(5):
        maps = [map_NP[i : i + 1] for map_NP in tokens]
        logits = generator(labels[i : i + 1], tokenizer.generator_inputs(maps))[0].double()
        for place, token in enumerate(torch.cat(maps, 1)[0].tolist()):
            exponentials = [math.exp(value) for value in logits[place].tolist()]
            bits[place] -= math.log2(exponentials[token] / sum(exponentials)) / 5
    torch.testing.assert_close(bits_per_token(tokenizer, generator, tokens, labels), bits, rtol=1e-5, atol=1e-5)
    other = bits_per_token(tokenizer, generator, tokens, labels.roll(1))
    assert not torch.allclose(other, bits, atol=1e-3)  # the class counts


def test_a_generator_that_knows_nothing_needs_log2_of_the_vocabulary(networks):
    tokenizer = networks[0]
    blank = Generator(networks[1].config).eval()  # weights are zero until they are initialised
    tokens = [torch.randint(11, (3, area)) for area in (1, 4, 9)]
    bits = bits_per_token(tokenizer, blank, tokens, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(bits, torch.full((14,), math.log2(11)).double(), rtol=1e-6, atol=0)
