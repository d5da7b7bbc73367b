"""The estimate of a run's memory: never more than it takes, and not far below."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mvar.generator.config import GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.tokenizer.config import PRESETS
from mvar.tokenizer.network import Tokenizer
from mvar.training import task
from mvar.training.config import GeneratorTraining
from mvar.training.generator import task as generator_task
from mvar.training.parallel import Ranks
from mvar.training.tokenizer import task as tokenizer_task

B = 2


def kept_bytes(network, forward) -> int:
    """What the backward pass keeps of a forward pass in bfloat16, the weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        forward()
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)


@pytest.mark.parametrize(
    ("kind", "checkpointing"), [({}, False), ({}, True), ({"attention": "none"}, False), ({"mamba": False}, True)]
)
def test_a_generators_activations(kind, checkpointing):
    shared = {"vocab_size": 16, "latent_channels": 8, "num_classes": 2, "sides": [1, 2, 4, 8]}
    config = GeneratorConfig(depth=3, width=128, **shared, **kind)
    generator = Generator(config)
    initialise(generator, seed=0)
    generator.activation_checkpointing = checkpointing
    L = config.schedule.length
    inputs, tokens = torch.randn(B, L - 1, 8), torch.zeros(B, L, dtype=torch.long)
    kept = kept_bytes(generator, lambda: generator.token_losses(torch.zeros(B, dtype=torch.long), inputs, tokens))
    estimate = B * generator_task.activation_bytes(config, checkpointing)
    assert estimate < kept < 6 * estimate


@pytest.mark.parametrize("decoder_only", [False, True])
def test_a_tokenizers_activations(decoder_only):
    tokenizer = Tokenizer(PRESETS["tiny32"])
    for part in (tokenizer.encoder, tokenizer.quant_conv, tokenizer.quantizer):
        part.requires_grad_(not decoder_only)
    kept = kept_bytes(tokenizer, lambda: tokenizer(torch.rand(B, 3, 32, 32)))
    estimate = B * tokenizer_task.activation_bytes(PRESETS["tiny32"])
    assert estimate < kept < 6 * estimate


@pytest.mark.parametrize(
    ("changes", "ranks", "needed"),
    [
        ({}, {}, 1000 * 20 + 64 * 10),
        ({"ema": 0.0}, {}, 1000 * 16 + 64 * 10),
        ({"accumulate": 4}, {}, 1000 * 20 + 16 * 10),
        ({"accumulate": 4}, {"size": 2, "kind": "ddp"}, 1000 * 20 + 8 * 10),
        ({}, {"size": 2, "kind": "fsdp"}, 500 * 20 + 32 * 10),
        ({"freeze": ("head",), "init_from": "g"}, {}, 1000 * 8 + 64 * 10),
    ],
)
def test_what_a_run_holds(monkeypatch, changes, ranks, needed):
    seen = []
    monkeypatch.setattr(task, "check_memory", lambda size, *_: seen.append(size))
    with torch.device("meta"):
        network = nn.Linear(100, 10, bias=False)
    run = replace(GeneratorTraining(data="d", out="o", tokenizer="t"), **changes)
    task.check_memory_for([network], run, 10, Ranks(device=torch.device("cpu"), **ranks))
    assert seen == [needed]
