import math

import pytest
import torch
from torch import nn

from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.generator.network import Generator
from mvar.training.config import GENERATOR_PRESETS, TOKENIZER_PRESETS, GeneratorTraining, TokenizerTraining
from mvar.training.generator.task import decays
from mvar.training.optim import build_optimizer, lr_factor, set_schedule, weight_decay_at

# Names of one M-VAR block with QK-norm; with shared AdaLN the projection gives way to `adaln_offset`.
DECAYED = {
    "class_embed.weight",
    "word_embed.weight",
    "head_adaln.weight",
    "head.weight",
    "blocks.0.adaln.weight",
    "blocks.0.attention.qkv.weight",
    "blocks.0.attention.proj.weight",
    "blocks.0.mamba.in_proj.weight",
    "blocks.0.mamba.conv_weight",
    "blocks.0.mamba.out_proj.weight",
    "blocks.0.mlp.fc1.weight",
    "blocks.0.mlp.fc2.weight",
}
UNDECAYED = {
    "start_pos",
    "pos_embed",
    "level_embed.weight",
    "word_embed.bias",
    "head_adaln.bias",
    "head.bias",
    "blocks.0.adaln.bias",
    "blocks.0.attention.q_bias",
    "blocks.0.attention.v_bias",
    "blocks.0.attention.log_scale",
    "blocks.0.attention.proj.bias",
    "blocks.0.mamba.conv_bias",
    "blocks.0.mamba.dt_bias",
    "blocks.0.mamba.A_log",
    "blocks.0.mamba.D",
    "blocks.0.mamba.norm_weight",
    "blocks.0.mlp.fc1.bias",
    "blocks.0.mlp.fc2.bias",
}
SHARED = {"blocks.0.adaln.weight": "shared_adaln.weight", "blocks.0.adaln.bias": "shared_adaln.bias"}


def run(**changes):
    return GeneratorTraining(**{"data": "d", "out": "o", "tokenizer": "t"} | changes)


@pytest.mark.parametrize(
    ("steps", "warmup", "end"), [(1000, 0.02, 0.1), (137, 0.1, 0.01), (40, 0.0, 1.0), (10, 0.05, 0.0)]
)
def test_learning_rate_follows_the_formula_at_every_step(steps, warmup, end):
    w = round(warmup * steps)
    for i in range(steps):
        if i < w:
            expected = 0.005 + (1 - 0.005) * i / w
        else:
            u = (i - w) / (steps - 1 - w)
            expected = 1 if u < 0.05 else end + (1 - end) * (1 - u) / 0.95
        assert lr_factor(i, steps, warmup, end) == pytest.approx(expected, abs=1e-12)


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
    expected_decayed, expected_undecayed = DECAYED, UNDECAYED
    if shared:
        expected_decayed = {SHARED.get(name, name) for name in DECAYED}
        expected_undecayed = {SHARED.get(name, name) for name in UNDECAYED} | {"blocks.0.adaln_offset"}
    found = groups(Generator(GeneratorConfig(depth=1, width=64, shared_adaln=shared, num_classes=2, vocab_size=8)))
    assert found == {True: expected_decayed, False: expected_undecayed}


@pytest.mark.parametrize("name", PRESETS)
def test_the_groups_cover_every_preset(name):
    with torch.device("meta"):
        generator = Generator(PRESETS[name])
    found = groups(generator)
    assert found[True] | found[False] == {name for name, _ in generator.named_parameters()}
    assert not found[True] & found[False]


def test_parameters_without_gradient_are_left_out():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = build_optimizer(layer, run(), lambda *_: True)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 0]


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


@pytest.mark.parametrize("name", [name for name in GENERATOR_PRESETS if not name.startswith(("tiny", "quick"))])
def test_what_all_official_recipes_share(name):
    config = run(**GENERATOR_PRESETS[name])
    assert (config.betas, config.grad_clip, config.warmup, config.weight_decay) == ((0.9, 0.95), 2.0, 0.02, 0.05)
    assert (config.label_smoothing, config.progressive, config.resize_factor) == (0.0, 0.0, 1.125)
    assert config.model.class_dropout == 0.1
    assert config.model.stochastic_depth == pytest.approx(0.1 * config.model.depth / 24)
    assert not config.activation_checkpointing
    assert not config.compile


def test_every_preset_is_a_sound_run():
    for preset in GENERATOR_PRESETS.values():
        run(**preset)
    for preset in TOKENIZER_PRESETS.values():
        TokenizerTraining(data="d", out="o", **preset)


def test_all_that_is_wrong_with_a_run_is_said_at_once():
    with pytest.raises(ValueError) as caught:
        run(steps=0, base_lr=float("nan"), betas=(0.9, 1.0), seed=-1, label_smoothing=1)
    assert str(caught.value).splitlines() == [
        "steps = 0: must lie in 1 to 1,000,000,000",
        "base_lr = nan: must be a finite number",
        "betas = 1.0: must lie in [0, 1)",
        f"seed = -1: must lie in 0 to {2**63 - 1:,}",
        "label_smoothing = 1: must lie in [0, 1)",
    ]
    with pytest.raises(ValueError) as caught:  # then what is wrong with several together
        run(out="d/run", data="d", batch_size=5, accumulate=2)
    starts = ("out = 'd/run': lies inside data", "batch_size = 5: cannot be cut into accumulate = 2 equal parts")
    lines = str(caught.value).splitlines()
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * 2, lines
