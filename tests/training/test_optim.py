import math

import pytest
import torch
from torch import nn

from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.training.config import GENERATOR_PRESETS, TOKENIZER_PRESETS, GeneratorTraining, TokenizerTraining
from mvar.training.generator.task import decays
from mvar.training.optim import WeightAverage, build_optimizer, lr_factor, set_schedule, weight_decay_at

from .runs import same_bits

# Names of one M-VAR block with QK-norm; with shared AdaLN the projection gives way to `adaln_offset`.
DECAYED = {
    "class_embed.weight", "word_embed.weight", "head_adaln.weight", "head.weight", "blocks.0.adaln.weight",
    "blocks.0.attention.qkv.weight", "blocks.0.attention.proj.weight", "blocks.0.mamba.in_proj.weight",
    "blocks.0.mamba.conv_weight", "blocks.0.mamba.out_proj.weight", "blocks.0.mlp.fc1.weight",
    "blocks.0.mlp.fc2.weight",
}  # fmt: skip
SHARED = {"blocks.0.adaln.weight": "shared_adaln.weight"}


def run(**changes):
    return GeneratorTraining(**{"data": "d", "out": "o", "tokenizer": "t"} | changes)


def test_learning_rate_at_its_known_points():
    assert lr_factor(0, 10_000, 0.02, 0.1) == 0.005
    assert lr_factor(100, 10_000, 0.02, 0.1) == pytest.approx(0.5025)
    assert lr_factor(200, 10_000, 0.02, 0.1) == 1
    assert lr_factor(200 + 489, 10_000, 0.02, 0.1) == 1  # the last of the flat part
    assert lr_factor(200 + 490, 10_000, 0.02, 0.1) < 1
    assert lr_factor(9_999, 10_000, 0.02, 0.1) == pytest.approx(0.1)
    assert lr_factor(0, 1, 0.0, 0.1) == 1  # a run of one step divides by nothing


def test_weight_decay_is_a_cosine_from_start_to_end():
    values = [weight_decay_at(i, 101, 0.05, 0.08) for i in (0, 25, 50, 100)]
    half = math.cos(math.pi / 4)
    assert values == pytest.approx([0.05, 0.08 - 0.03 * (1 + half) / 2, 0.065, 0.08])
    assert weight_decay_at(0, 1, 0.05, 0.08) == 0.05


def test_the_schedule_reaches_the_groups():
    config = run(batch_size=64, base_lr=0.4, weight_decay=0.2, weight_decay_end=0.6, steps=101, warmup=0)
    optimizer = build_optimizer(nn.Linear(2, 2), config, lambda name, _: name == "weight")
    assert set_schedule(optimizer, 0, 101, config) == 0.1  # 0.4 for 256 images
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.1, 0.2), (0.1, 0.0)]
    set_schedule(optimizer, 50, 101, config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(0.4), 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


def groups(generator):
    names = {id(p): name for name, p in generator.named_parameters()}
    optimizer = build_optimizer(generator, run(), decays)
    found = [{names[id(p)] for p in group["params"]} for group in optimizer.param_groups]
    return {group["decay"]: names for group, names in zip(optimizer.param_groups, found, strict=True)}


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_decayed(shared):
    generator = Generator(GeneratorConfig(depth=1, width=64, shared_adaln=shared, num_classes=2, vocab_size=8))
    decayed = {SHARED.get(name, name) if shared else name for name in DECAYED}
    others = {name for name, _ in generator.named_parameters()} - decayed
    assert groups(generator) == {True: decayed, False: others}


def test_the_recipes_are_the_official_ones():
    def recipe(name):
        config = run(**GENERATOR_PRESETS[name])
        epochs = config.steps * config.batch_size / 1_281_167
        return round(epochs), config.batch_size, config.base_lr, config.lr_end, config.weight_decay_end

    assert recipe("d12") == recipe("d16") == (200, 768, 1e-4, 0.1, 0.05)
    assert recipe("d20") == (250, 768, 1e-4, 0.1, 0.05)
    assert recipe("d24") == (350, 768, 8e-5, 0.01, 0.05)
    assert recipe("d30") == (350, 1024, 8e-5, 0.01, 0.08)
    assert recipe("var-d36-s") == (350, 768, 8e-5, 0.01, 0.08)
    for name, preset in GENERATOR_PRESETS.items():
        config = run(**preset)
        if not name.startswith(("tiny", "quick")):
            assert (config.betas, config.grad_clip, config.warmup, config.weight_decay) == ((0.9, 0.95), 2, 0.02, 0.05)
            assert config.model.stochastic_depth == pytest.approx(0.1 * config.model.depth / 24)
    for preset in TOKENIZER_PRESETS.values():
        TokenizerTraining(data="d", out="o", **preset)


def test_what_is_wrong_with_several_settings_together_is_said_at_once():
    with pytest.raises(ValueError) as caught:
        run(out="d/run", data="d", batch_size=5, accumulate=2)
    starts = ("out = 'd/run': lies inside data", "batch_size = 5: cannot be cut into accumulate = 2 equal parts")
    lines = str(caught.value).splitlines()
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 2, lines


# --- the average of the weights ---


@pytest.fixture
def module():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    network[0].bias.requires_grad_(False)
    return network


def state(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def walk(module):
    """A step of training."""
    with torch.no_grad():
        for p in module.parameters():
            if p.requires_grad:
                p += torch.randn(p.shape)


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_it_is_the_moving_average_with_a_warm_up(module, decay):
    average = WeightAverage(module, decay)
    expected = module[2].weight.tolist()
    for step in range(40):
        walk(module)
        average.update(step)
        past = min(decay, (1 + step) / (10 + step))
        live = module[2].weight.tolist()
        expected = [
            [past * a + (1 - past) * b for a, b in zip(*rows, strict=True)] for rows in zip(expected, live, strict=True)
        ]
    torch.testing.assert_close(average.state()["2.weight"], torch.tensor(expected))
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert average.state().keys() == trained == {"0.weight", "1.weight", "1.bias", "2.weight", "2.bias"}


def test_applied_puts_it_in_and_takes_it_out_again(module):
    average = WeightAverage(module, 0.9)
    walk(module)
    average.update(0)
    live, averages = state(module), {name: t.clone() for name, t in average.state().items()}
    places = [p.data_ptr() for p in module.parameters()]
    with average.applied():
        assert same_bits(state(module), live | averages)
        assert not same_bits(state(module), live)
    assert same_bits(state(module), live)
    with pytest.raises(KeyError), average.applied():  # whatever goes wrong inside
        raise KeyError
    assert same_bits(state(module), live)
    assert same_bits(average.state(), averages)
    assert places == [p.data_ptr() for p in module.parameters()]  # the optimizer still knows them

    average.take()
    assert same_bits(state(module), live | averages)
    average.update(1)
    assert same_bits(state(module), live | averages)


def test_moved_rows_forget_their_past(module):
    average = WeightAverage(module, 0.9)
    walk(module)
    before = average.state()["2.weight"].clone()
    average.restart("2.weight", torch.tensor([1]))
    average.restart("0.bias", torch.tensor([1]))  # not trained, so there is no average of it
    average.restart("0.weight", torch.tensor([], dtype=torch.long))
    after = average.state()
    assert torch.equal(after["2.weight"][1], module[2].weight[1])
    assert torch.equal(after["2.weight"][0], before[0])
    assert not torch.equal(after["0.weight"], module[0].weight)
