"""What a GPU would do, counted on torch's meta device, which takes the same branches and cannot be read from.

A count that grows makes every image slower where kernels are short: give a reason, or make it smaller again.
"""

from collections import Counter

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvar.checkpoint.placement import to_device
from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import Sampler
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer
from mvar.training.generator.loss import GeneratorLoss, compile_blocks

pytest.importorskip("triton")

META = torch.device("meta")
SHAPES = {"vocab_size": 64, "latent_channels": 8, "sides": [1, 2, 3]}
VIEWS = {
    *(
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "split",
    ),
    *("split_with_sizes", "unbind", "detach", "alias", "as_strided", "_reshape_alias", "lift_fresh"),
}


class Counting(TorchDispatchMode):
    """Counts operators but views, and those that touch the CPU."""

    def __init__(self):
        super().__init__()
        self.found, self.on_cpu = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), func.__name__.partition(".")[0]
        self.found[name] += name not in VIEWS
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        self.on_cpu[name] += any(tensor.device.type == "cpu" for tensor in tensors)
        return out

    @property
    def total(self):
        return self.found.total()


def flash(q, k, v, attn_mask, scale):
    """The kernel that CUDA takes where there is no mask; torch has no such choice on meta."""
    assert attn_mask is None
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setenv("MVAR_OPS", "native")
    monkeypatch.setattr(F, "scaled_dot_product_attention", flash)


def networks(depth, dtype="bfloat16", **mixers):
    with META:
        tokenizer = Tokenizer(TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **SHAPES))
        generator = Generator(GeneratorConfig(depth=depth, width=64, heads=1, num_classes=2, **SHAPES, **mixers))
    to_device(tokenizer, generator, META, dtype)
    return tokenizer.eval(), generator.eval()


def drawing(depth, **mixers):
    """Operators of each scale of a batch of two images."""
    settings = SamplingSettings(guidance=1.5, top_k=20, top_p=0.9)
    sampler = Sampler(*networks(depth, **mixers), 0, settings)
    canvas, counts = sampler.start(torch.arange(2), range(2)), []
    canvas = sampler.draw(canvas)  # the keys of the noise are copied once
    for _ in range(sampler.scales - 1):
        with Counting() as counting:
            canvas = sampler.draw(canvas)
        counts.append(counting)
    return counts


@pytest.mark.parametrize(("mixers", "most"), [({}, 17), ({"attention": "global", "mamba": False}, 15)])
def test_sampling_waits_for_nothing_and_runs_few_kernels(mixers, most):
    for one, two in zip(drawing(1, **mixers), drawing(2, **mixers), strict=True):
        assert two.total - one.total <= most, (two.found - one.found).most_common()
        assert two.total - 2 * (two.total - one.total) <= 47, "of a scale, besides its blocks"
        assert not +two.on_cpu


def train(generator):
    losses = GeneratorLoss(generator.train(), 0.0)
    with META:
        labels, tokens = torch.zeros(2, dtype=torch.long), torch.zeros(2, 14, dtype=torch.long)
        inputs = torch.zeros(2, 13, 8)
    nll, _ = losses(labels, inputs, tokens)
    nll.mean().backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch.compile itself reads
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # which torch.compile itself does
def test_a_block_compiles_without_a_break_and_once_for_all_blocks():
    counter = CompileCounterWithBackend("aot_eager")
    _, generator = networks(3, "float32")
    compile_blocks(generator, counter)
    train(generator)
    assert counter.frame_count == 1


def counted(work, *arguments):
    with Counting() as counting:
        work(*arguments)
    return counting


def test_a_training_step_waits_for_nothing_and_runs_few_kernels():
    one, two = (counted(train, networks(depth, "float32")[1]) for depth in (1, 2))
    assert two.total - one.total <= 69, (two.found - one.found).most_common()
    assert not +two.on_cpu
