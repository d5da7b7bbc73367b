"""What a GPU would do, counted on torch's meta device, which takes the same branches and cannot be read from.

A count that grows makes every image slower where kernels are short: give a reason, or make it smaller again.
"""

import sys
from collections import Counter
from typing import get_args

import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from mvar.checkpoint.placement import to_device
from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.sampling.config import EditMode, SamplingSettings
from mvar.sampling.editing import edit
from mvar.sampling.engine import Sampler
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer
from mvar.training.config import GeneratorTraining, TokenizerTraining
from mvar.training.course import Course
from mvar.training.generator.loss import GeneratorLoss, compile_blocks
from mvar.training.generator.task import GeneratorTask
from mvar.training.generator.token_data import TokenData
from mvar.training.loop import clip
from mvar.training.parallel import Ranks
from mvar.training.task import open_images
from mvar.training.tokenizer.task import TokenizerTask

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
    """Counts operators but views, and those between the CPU and the device; reading a number from it is an error."""

    def __init__(self):
        super().__init__()
        self.found, self.on_cpu = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, name = func(*args, **(kwargs or {})), func.__name__.partition(".")[0]
        self.found[name] += name not in VIEWS
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        self.on_cpu[name] += len({tensor.device for tensor in tensors}) > 1
        return out

    @property
    def total(self):
        return self.found.total()


def flash(q, k, v, attn_mask=None, scale=None):
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


@pytest.mark.parametrize(
    ("mixers", "most", "besides"),
    [
        ({}, 17, 47),
        ({"attention": "global", "mamba": False}, 15, 47),
        ({"attention": "recent", "mamba": False}, 17, 47),
        ({"order": "mamba-first", "scan": "snake"}, 17, 53),
        ({"order": "parallel"}, 19, 47),
        ({"scan": "bidirectional"}, 27, 47),
    ],
)
def test_sampling_waits_for_nothing_and_runs_few_kernels(mixers, most, besides):
    for one, two in zip(drawing(1, **mixers), drawing(2, **mixers), strict=True):
        assert two.total - one.total <= most, (two.found - one.found).most_common()
        assert two.total - 2 * (two.total - one.total) <= besides, "of a scale, besides its blocks"
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
@pytest.mark.parametrize("mixers", [{}, {"attention": "recent", "order": "mamba-first"}, {"order": "parallel"}])
def test_a_block_compiles_without_a_break_and_once_for_all_blocks(mixers):
    counter = CompileCounterWithBackend("aot_eager")
    _, generator = networks(3, "float32", **mixers)
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


@pytest.fixture
def sending(monkeypatch):
    """What is sent to the device goes through pinned memory, which nobody waits for: it does not count."""

    def send(x, device):
        with _disable_current_modes():
            return x.to(device)

    for name, module in list(sys.modules.items()):
        if name.startswith("mvar.") and hasattr(module, "send"):
            monkeypatch.setattr(module, "send", send)


@pytest.mark.usefixtures("sending")
@pytest.mark.parametrize("mode", get_args(EditMode))
def test_editing_waits_for_nothing(mode, monkeypatch):
    sampler = Sampler(*networks(1), 0, SamplingSettings(guidance=1.5, top_k=20))

    def drawn(self, count, size, begin, on_scale, keep):
        canvas = self.draw(begin(slice(0, count)), keep)  # constants are made at the first scale
        with Counting() as counting:
            self.draw(self.draw(canvas, keep), keep)
        assert not +counting.on_cpu
        raise InterruptedError

    monkeypatch.setattr(Sampler, "in_batches", drawn)
    hole = torch.zeros(6, 6, dtype=torch.bool)
    hole[2:5, 2:5] = True
    with pytest.raises(InterruptedError):
        edit(sampler, torch.zeros(1, 3, 6, 6, device=META), hole, torch.tensor([0, 1]), range(2), mode, 2)


def test_scoring_runs_few_kernels():
    def score(generator):
        with META, torch.no_grad():
            generator(torch.zeros(2, dtype=torch.long), torch.zeros(2, 13, 8))

    one, two = (counted(score, networks(depth)[1]) for depth in (1, 2))
    assert two.total - one.total <= 24, (two.found - one.found).most_common()
    assert not +two.on_cpu


@pytest.mark.usefixtures("sending")
@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_a_step_of_either_training_waits_for_nothing(kind, tmp_path, monkeypatch):
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (40 * i, 10, 10)).save(tmp_path / "images" / label / f"{i}.png")
    small = {"vocab_size": 64, "latent_channels": 8, "sides": [1, 2, 4]}
    model = TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **small)
    common = {
        "data": str(tmp_path / "images"),
        "out": str(tmp_path / "run"),
        "batch_size": 2,
        "dtype": "float32",
        "workers": 0,
    }
    on_meta = Ranks(device=META)
    for part in ("generator", "tokenizer"):  # fused updates are not for meta
        monkeypatch.setattr(f"mvar.training.{part}.task.build_optimizer", lambda module, *_: SGD(module.parameters()))
    if kind == "generator":
        config = GeneratorTraining(tokenizer="none", model=GeneratorConfig(depth=1, width=64), **common)
        with META:
            tokenizer = Tokenizer(model).eval()
        task = GeneratorTask(config, on_meta, TokenData.open(config, on_meta, tokenizer))
    else:
        config = TokenizerTraining(model=model, perceptual=0.0, adversarial=0.0, scale_dropout=0.5, **common)
        task = TokenizerTask(config, on_meta, None, *open_images(config, (8, 8)), Course(config))
    task.loss(0, 0)  # constants are made
    with Counting() as counting:
        loss, metrics = task.loss(1, 0)
        loss.backward()
        clip(task.networks, 1.0)
        torch.stack([loss, *metrics.values()]).isfinite()
    assert not +counting.on_cpu
