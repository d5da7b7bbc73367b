from dataclasses import replace

import psutil
import pytest
import torch

from mvar.generator.config import GeneratorConfig
from mvar.sampling import cost as cost_module
from mvar.sampling.config import SamplingSettings
from mvar.sampling.cost import cost, fitting_batch, fitting_rows
from mvar.sampling.engine import Sampler
from mvar.tokenizer.config import TokenizerConfig

SHARED = {"vocab_size": 64, "latent_channels": 8, "sides": [1, 2, 4]}
TOKENIZER = TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **SHARED)


def config(**changes):
    return GeneratorConfig(**{"depth": 2, "width": 64, "heads": 2, "num_classes": 3, **SHARED, **changes})


def test_arithmetic_is_that_of_the_matrices():
    """VAR's blocks: 12 C^2 weights a token, attention, word embedding, head, AdaLN once a label; phi on f_hat."""
    C, L, V, Z, depth = 64, 21, 64, 8, 2
    found = cost(TOKENIZER, config(attention="global", mamba=False))
    seen = 1 * 1 + 4 * 5 + 16 * 21  # keys of each scale's tokens
    per_branch = L * depth * 12 * C**2 + depth * 2 * seen * C + (L - 1) * Z * C + depth * 6 * C**2 + 2 * C**2
    head = (L + (L - 1)) * C * V  # the unconditional head is saved at the first scale
    phi = 3 * 16 * 9 * Z**2
    assert found.generator_flop == 2 * (2 * per_branch + head + phi)
    assert found.state_bytes == depth * 2 * L * C * 4
    recent = cost(TOKENIZER, config(attention="recent", mamba=False))
    assert (
        found.generator_flop - recent.generator_flop == 2 * 2 * depth * 2 * 16 * C
    )  # which do not see the first token
    assert recent.state_bytes == depth * 2 * 16 * C * 4


def test_mambas_state_does_not_grow_with_the_image():
    small, large = (cost(replace(TOKENIZER, sides=sides), config(sides=sides)) for sides in ([1, 2, 4], [1, 2, 4, 8]))
    inner, states, convolution = 128, 64, 128 + 2 * 64
    assert small.state_bytes == large.state_bytes == 2 * 4 * (inner * states + 3 * convolution)
    assert large.generator_flop > 3 * small.generator_flop
    assert cost(TOKENIZER, config(num_classes=0)).generator_flop < 0.6 * small.generator_flop  # one branch


def test_batches_are_what_memory_allows(build, monkeypatch):
    tokenizer, generator = build()
    pieces = tokenizer.config, generator.config, torch.device("cpu")
    assert fitting_batch(*pieces) == fitting_rows(generator.config, pieces[2]) == 64
    one = cost_module.peak_bytes(tokenizer.config, generator.config)

    def memory(free):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))

    memory(one * 2 * 5)
    assert fitting_batch(*pieces) == 5
    memory(0)
    assert fitting_batch(*pieces) == fitting_rows(generator.config, pieces[2]) == 1


@pytest.mark.parametrize("mixers", [{}, {"attention": "recent"}, {"order": "parallel", "scan": "bidirectional"}])
def test_the_estimate_of_an_images_memory_is_not_too_small(build, mixers):
    """Every tensor that drawing one more image makes, the largest moment of it, by torch's own count."""
    tokenizer, generator = build(sides=(1, 2, 4, 8), **mixers)
    sampler = Sampler(tokenizer, generator, 0, SamplingSettings(guidance=1.0))

    def peak(n):
        live, most = 0, 0
        with torch.profiler.profile(profile_memory=True) as profile:
            sampler.sample(torch.zeros(n, dtype=torch.long), range(n))
        for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                live += event.nbytes()
                most = max(most, live)
        return most

    assert (peak(9) - peak(1)) / 8 < cost_module.peak_bytes(tokenizer.config, generator.config)
