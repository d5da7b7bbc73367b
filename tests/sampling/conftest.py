"""A tiny random model, for tests of everything that draws or scores."""

import pytest
import torch

from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer

V, Z, CLASSES = 48, 8, 3


@pytest.fixture(scope="session")
def build():
    """Make a tokenizer and a generator; arguments change the generator's config."""
    return _build


def _build(sides=(1, 2, 3, 4), num_classes=CLASSES, **generator):
    """A tiny random model whose logits are far from flat."""
    rng = torch.Generator().manual_seed(0)
    shared = {"vocab_size": V, "latent_channels": Z, "sides": list(sides)}
    with torch.random.fork_rng():
        torch.manual_seed(1)  # convolutions draw their biases
        tokenizer = Tokenizer(TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **shared))
    config = {"depth": 2, "width": 64, "heads": 2, "state_size": 16, "num_classes": num_classes} | generator
    network = Generator(GeneratorConfig(**config, **shared))
    with torch.no_grad():
        for parameter in [*tokenizer.parameters(), *network.parameters()]:
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=rng) / fan_in**0.5)
        tokenizer.quantizer.codebook.mul_(Z**0.5)
        network.class_embed.weight.mul_(3)
        network.head.weight.mul_(3)
    return tokenizer.eval(), network.eval()
