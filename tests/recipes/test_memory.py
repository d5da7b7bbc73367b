"""GPU memory: the page shows the current arithmetic, and the arithmetic agrees with real tensors."""

import re
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.profiler import profile

from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.generator.network import Generator
from mvar.training.generator.loss import GeneratorLoss
from mvar.training.parallel import shard
from recipes import memory
from recipes.shared import between

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
SMALL = GeneratorConfig(depth=3, width=128, num_classes=10, vocab_size=256, latent_channels=8, sides=[1, 2, 4, 8, 12])


def test_the_page_shows_what_the_networks_take_today(monkeypatch):
    """The smallest; the others follow the same rule."""
    written = between(PAGE).splitlines()
    kept = [line for line in written if not re.match(r"\| `d(20|24|30|32)`", line)]
    assert len(written) - len(kept) == 12
    monkeypatch.setattr(memory, "NAMES", ("d16",))
    assert kept == memory.tables().splitlines()


def test_activations_are_those_that_a_processor_allocates():
    """On a CPU all tensors are made for real; the allocator's own record of them is the witness."""
    generator = memory.as_gathered(SMALL, "cpu")
    with profile(profile_memory=True) as record:
        counted = memory.step_bytes(generator, 2)
    events = record.profiler.kineto_results.events()
    allocated = list(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
    assert counted == pytest.approx(max(allocated), rel=0.02)
    assert memory.activation_bytes(SMALL, images=2) == pytest.approx(counted, rel=0.1)


@pytest.fixture
def eight_ranks():
    """This process as rank 0 of eight; what is sent goes nowhere."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("eight_ranks")
@pytest.mark.parametrize("name", ["d16", "tiny32"])
def test_shares_are_those_of_the_spread_model(name):
    with torch.device("meta"):
        generator = Generator(PRESETS[name])
    losses = GeneratorLoss(generator)
    shard(losses, generator, torch.bfloat16)
    held = 0
    for parameter in losses.parameters():
        assert isinstance(parameter, DTensor)
        held += 4 * parameter.to_local().numel()
    assert memory.fsdp_memory(PRESETS[name], 8, activations=0).weights == held
