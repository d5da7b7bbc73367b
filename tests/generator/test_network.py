import math
from dataclasses import replace
from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mvar.checkpoint.placement import to_device
from mvar.generator.config import GeneratorConfig, Order, Scan
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.ops import attention
from mvar.tokenizer.config import PRESETS as TOKENIZERS
from mvar.tokenizer.network import Tokenizer

TINY = GeneratorConfig(
    depth=2,
    width=64,
    heads=2,
    state_size=16,
    num_classes=5,
    vocab_size=40,
    latent_channels=8,
    sides=[1, 2, 3, [3, 5], 6],
)
CONFIGS = {
    "m-var": TINY,
    "var": replace(TINY, attention="global", mamba=False),
    "recent": replace(TINY, attention="recent", mamba=False),
    "mamba first": replace(TINY, attention=["recent", "global"], order="mamba-first", scan="snake"),
    "parallel": replace(TINY, attention="recent", order="parallel", scan="bidirectional", shared_adaln=True),
    "mamba only": replace(TINY, attention="none"),
    "mlp only": replace(TINY, attention="none", mamba=False),
    "global and mamba, shared adaln, no qk-norm": replace(TINY, attention="global", shared_adaln=True, qk_norm=False),
    "a mixer a block": replace(TINY, attention=["global", "intra"], mamba=[False, True]),
    "one scale": replace(TINY, sides=[2]),
}
WHOLE = range(len(TINY.sides))
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def generator(config, dtype=torch.float64):
    """With gates, biases and temperatures large enough that every path matters."""
    network = Generator(config).to(dtype).eval()
    initialise(network, seed=1)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    return network


def batch(config, size=3):
    rng = torch.Generator().manual_seed(3)
    schedule = config.schedule
    labels = torch.randint(0, config.num_classes + 1, (size,), generator=rng)
    inputs = torch.randn(
        size, schedule.length - schedule.areas[0], config.latent_channels, generator=rng, dtype=torch.float64
    )
    return labels, inputs


def part(config, inputs, scales):
    """What `embed` takes for these scales."""
    first, span = config.schedule.areas[0], config.schedule.span(scales)
    return inputs[:, max(span.start - first, 0) : span.stop - first]


def run(network, labels, inputs, pieces, state=None, modulation=None):
    modulation = network.modulation(labels) if modulation is None else modulation
    logits = []
    for scales in pieces:
        x = network.embed(part(network.config, inputs, scales), modulation, scales)
        piece, state = network.step(x, modulation, state, scales)
        logits.append(piece)
    return torch.cat(logits, dim=1), state


def tensors(state):
    return [t for block in state.blocks for part in block if part is not None for t in part]


@each_config
@pytest.mark.parametrize(("cuts", "group_tokens"), [((1, 2, 3, 4), attention.GROUP_TOKENS), ((2,), 0), ((1, 4), 16)])
def test_incremental_equals_parallel(config, cuts, group_tokens, monkeypatch):
    monkeypatch.setattr(attention, "GROUP_TOKENS", group_tokens)
    network, (labels, inputs) = generator(config), batch(config)
    trained = network(labels, inputs)
    bounds = [0, *(c for c in cuts if c < len(config.sides)), len(config.sides)]
    pieces = [range(a, b) for a, b in pairwise(bounds)]
    with torch.no_grad():
        parallel = network(labels, inputs)
        everything, final = run(network, labels, inputs, [range(len(config.sides))])
        logits, state = run(network, labels, inputs, pieces, network.initial_state(len(labels)))
    torch.testing.assert_close(parallel, trained, rtol=0, atol=1e-10)  # without and with gradients
    torch.testing.assert_close(everything, parallel, rtol=0, atol=0)
    torch.testing.assert_close(logits, parallel, rtol=0, atol=1e-11)
    torch.testing.assert_close(tensors(state), tensors(final), rtol=0, atol=1e-11)
    assert state.scales == len(config.sides)


@each_config
def test_a_token_changes_only_later_scales(config):
    network, (labels, inputs) = generator(config), batch(config)
    schedule = config.schedule
    with torch.no_grad():
        before = network(labels, inputs)
        for k in range(1, len(schedule)):  # a token of scale k - 1 enters as the input of scale k and all after
            changed = inputs.clone()
            changed[:, schedule.offsets[k] - schedule.areas[0] :] += 1
            difference = (network(labels, changed) - before).abs().amax((0, 2))
            assert difference[: schedule.offsets[k]].max() == 0
            assert difference[schedule.offsets[k] :].min() > 1e-6


@pytest.mark.parametrize(("kind", "reach"), [("intra", 0), ("recent", 1), ("global", 2)])
def test_attention_is_bidirectional_inside_a_scale_and_ends_where_it_should(kind, reach):
    """One block, in which a token of scale 2 reaches as many of the scales after it."""
    config = replace(TINY, depth=1, attention=kind, mamba=False)
    network, (labels, inputs) = generator(config), batch(config)
    span = config.schedule.slice(2)
    changed = inputs.clone()
    changed[:, span.stop - 1 - config.schedule.areas[0]] += 1  # the last token of scale 2
    with torch.no_grad():
        difference = (network(labels, changed) - network(labels, inputs)).abs().amax((0, 2))
    assert difference[: span.start].max() == 0
    assert difference[span].min() > 1e-6
    for k in (3, 4):
        later = difference[config.schedule.slice(k)]
        assert later.min() > 1e-6 if k <= 2 + reach else later.max() == 0


@pytest.mark.parametrize("order", get_args(Order))
def test_a_block_mixes_in_its_order(order):
    """The same weights by the formula; attention's AdaLN vectors are the first of each kind in every order."""
    config = replace(TINY, depth=1, order=order)
    network, (labels, _) = generator(config), batch(config)
    (block,), x = network.each_block(), torch.randn(3, 5, 64, dtype=torch.float64)
    modulation = network.modulation(labels).blocks[0]
    vectors = modulation.unflatten(1, (3, 3))[:, :, :, None]  # gate, scale or shift, of attention, Mamba or MLP

    def branch(i, x):
        y = F.layer_norm(x, (64,), eps=1e-6) * (1 + vectors[:, 1, i]) + vectors[:, 2, i]
        y = (lambda: block.attention(y, (1, 4))[0], lambda: block.mamba(y, (1, 4))[0], lambda: block.mlp(y))[i]()
        return vectors[:, 0, i] * y

    steps = {"attention-first": [[0], [1], [2]], "mamba-first": [[1], [0], [2]], "parallel": [[0, 1], [2]]}[order]
    expected = x
    for step in steps:
        expected = expected + sum(branch(i, expected) for i in step)
    found, _ = block(x, modulation, block.initial_state(3), (1, 4))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@each_config
def test_train_differs_from_eval_only_in_its_drops(config):
    still = replace(config, class_dropout=0.0, stochastic_depth=0.0)
    network, (labels, inputs) = generator(still), batch(still)
    with torch.no_grad():
        evaluated = network(labels, inputs)
        torch.testing.assert_close(network.train()(labels, inputs), evaluated, rtol=0, atol=0)

        dropping = generator(replace(config, class_dropout=0.5, stochastic_depth=0.5))
        torch.testing.assert_close(dropping(labels, inputs), evaluated, rtol=0, atol=0)
        noise = torch.full((len(labels), dropping.noise_size), 0.9)
        noise[1, 0] = 0.1  # image 1 loses its class
        noise[2, -1] = 0.1  # image 2 loses the last block's MLP
        trained = dropping.train()(labels, inputs, noise)

        factors = [[1 - rate, 1 - rate, 1 - rate] for rate in dropping.config.drop_rates]
        expected = []
        for image, label in enumerate(labels.tolist()):
            label = config.num_classes if image == 1 else label
            modulation = network.eval().modulation(torch.tensor([label]))
            blocks = []
            for index, (vectors, mixer) in enumerate(zip(modulation.blocks, config.mixers, strict=True)):
                gates, others = vectors.clone().split((mixer.branches, 2 * mixer.branches), dim=1)
                gates /= factors[index][0]
                if image == 2 and index == config.depth - 1:
                    gates[:, -1] = 0
                blocks.append(torch.cat((gates, others), 1))
            modulation = replace(modulation, blocks=tuple(blocks))
            whole = [range(len(config.sides))]
            expected.append(run(network, None, inputs[image : image + 1], whole, modulation=modulation)[0])
    torch.testing.assert_close(trained, torch.cat(expected), rtol=0, atol=1e-11)


def test_training_noise_follows_its_rates():
    config = replace(TINY, class_dropout=0.25, stochastic_depth=0.4)
    network = generator(config).train()
    labels = torch.zeros(4000, dtype=torch.long)
    torch.manual_seed(0)
    with torch.no_grad():
        modulation = network.modulation(labels)
    null = network.class_embed.weight[config.num_classes]
    assert (modulation.class_embedding_BC == null).all(1).double().mean() == pytest.approx(0.25, abs=0.03)
    for vectors, rate in zip(modulation.blocks, config.drop_rates, strict=True):
        dropped = (vectors == 0).all(-1).double().mean(0)
        torch.testing.assert_close(dropped[:3], torch.full((3,), rate).double(), rtol=0, atol=0.03)
        assert dropped[3:].max() == 0


@each_config
def test_state_selects_images(config):
    if len(config.sides) == 1:
        config = replace(config, sides=[2, 2])
    network, (labels, inputs) = generator(config), batch(config)
    first, rest = range(2), range(2, len(config.sides))
    pieces = [rest] if len(rest) else []
    with torch.no_grad():
        whole = network(labels, inputs)[:, config.schedule.offsets[2] :]
        _, state = run(network, labels, inputs, [first])
        for index, other in (
            (torch.tensor([2, 0]), state.select(torch.tensor([2, 0]))),
            (torch.tensor([0, 2]), state.select(torch.tensor([True, False, True]))),
            (torch.tensor([0, 0, 1]), state.select(torch.tensor([0, 0, 1]))),
        ):
            assert other.scales == 2
            assert all(len(t) == len(index) for t in tensors(other))
            for piece in pieces:
                logits, _ = run(network, labels[index], inputs[index], [piece], other)
                torch.testing.assert_close(logits, whole[index], rtol=0, atol=1e-11)


@pytest.mark.parametrize("scan", get_args(Scan))
def test_mamba_alone_sees_later_tokens_of_a_scale_only_in_both_directions(scan):
    config = replace(TINY, depth=1, attention="none", scan=scan)
    network, (labels, inputs) = generator(config), batch(config)
    span = config.schedule.slice(2)
    changed = inputs.clone()
    changed[:, span.stop - 1 - config.schedule.areas[0]] += 1  # the last token of scale 2
    with torch.no_grad():
        difference = (network(labels, changed) - network(labels, inputs)).abs().amax((0, 2))
    assert difference[: span.start].max() == 0
    earlier = difference[span][:-1]
    assert earlier.min() > 1e-6 if scan == "bidirectional" else earlier.max() == 0
    assert difference[span.stop - 1 :].min() > 1e-6


class Winding(nn.Module):
    """A Mamba around which tokens are put in the order of the snake, and back."""

    def __init__(self, mamba, shapes):
        super().__init__()
        self.mamba, self.order, start = mamba, [], 0
        for h, w in shapes:
            for row in range(h):
                places = [start + row * w + column for column in range(w)]
                self.order += places[::-1] if row % 2 else places
            start += h * w

    def forward(self, x, areas, state):
        y, state = self.mamba(x[:, self.order], areas, state)
        return y[:, [self.order.index(i) for i in range(len(self.order))]], state


@pytest.mark.parametrize("attention", ["intra", "recent", "global"])
def test_a_snake_is_another_order_around_each_mamba(attention):
    config = replace(TINY, attention=attention, scan="snake")
    network, naive, (labels, inputs) = generator(config), generator(replace(config, scan="raster")), batch(config)
    straight = naive(labels, inputs)
    weights = [list(each.parameters()) for each in (network, naive)]
    for block in naive.each_block():
        block.mamba = Winding(block.mamba, config.schedule.shapes)
    found, expected = network(labels, inputs), naive(labels, inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    assert (found - straight).abs().max() > 1e-3
    gradients = [torch.autograd.grad(y.sin().sum(), w) for y, w in zip((found, expected), weights, strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_recent_attention_carries_the_last_scale_alone():
    config = replace(TINY, attention="recent", mamba=False)
    network, (labels, inputs) = generator(config), batch(config)
    _, state = run(network, labels, inputs, [range(2), range(2, 4)])
    for t in tensors(state):
        assert t.shape[2] == config.schedule.areas[3]
        assert t.untyped_storage().nbytes() == t.nbytes, "no view of more"


def test_head_rows_skip_the_head_but_fill_the_state():
    network, (labels, inputs) = generator(TINY), batch(TINY)
    modulation = network.modulation(labels)
    x = network.embed(inputs, modulation, WHOLE)
    everything, state = network.step(x, modulation, None, WHOLE)
    for rows in (0, 2):
        logits, other = network.step(x, modulation, None, WHOLE, head_rows=rows)
        torch.testing.assert_close(logits, everything[:rows], rtol=0, atol=1e-12)
        torch.testing.assert_close(tensors(other), tensors(state), rtol=0, atol=0)


@each_config
def test_bfloat16_keeps_tokens_states_and_logits_in_float32(config):
    network, (labels, inputs) = generator(config, torch.float32), batch(config)
    inputs = inputs.float()
    with torch.no_grad():
        exact, _ = run(network, labels, inputs, [range(len(config.sides))])
        with torch.autocast("cpu", torch.bfloat16):
            autocast, state = run(network, labels, inputs, [range(len(config.sides))])
        network = network.bfloat16()
        low, low_state = run(network, labels, inputs, [range(len(config.sides))])
    for logits in (autocast, low):
        assert logits.dtype == torch.float32
        assert 0 < (logits - exact).abs().max() < 0.05 * exact.abs().max()
    for block in (*state.blocks, *low_state.blocks):
        assert block.mamba is None or block.mamba.ssm_BhPN.dtype == torch.float32
        assert block.attention is None or block.attention.keys_BHTd.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["m-var", "var"])
def test_bfloat16_weights_as_they_run_give_logits_within_two_percent(name):
    config = replace(CONFIGS[name], depth=4, width=256, heads=4, state_size=64, vocab_size=200)
    network, (labels, inputs) = generator(config, torch.float32), batch(config)
    inputs, pieces = inputs.float(), [range(k, k + 1) for k in range(len(config.sides))]
    with torch.no_grad():
        exact = network(labels, inputs)
        to_device(Tokenizer(TOKENIZERS["tiny32"]), network, "cpu", "bfloat16")
        logits, _ = run(network, labels, inputs, pieces)
        again, _ = run(network, labels, inputs, pieces)
    assert (logits - exact).norm() < 0.02 * exact.norm()
    assert torch.equal(logits, again)


@each_config
def test_every_parameter_learns_under_autocast(config):
    network, (labels, inputs) = generator(config, torch.float32).train(), batch(config)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(labels, inputs.float())
    logits.sin().sum().backward()
    unused = {"word_embed.weight", "word_embed.bias"} if len(config.sides) == 1 else set()
    for name, parameter in network.named_parameters():
        if name not in unused:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_wrong_calls_say_what_was_expected():
    network, (labels, inputs) = generator(TINY), batch(TINY)
    with pytest.raises(ValueError, match=r"inputs have 63 tokens, scales .* take 64"):
        network(labels, inputs[:, 1:])
    modulation = network.modulation(labels)
    x = network.embed(inputs, modulation, WHOLE)
    with pytest.raises(ValueError, match=r"scales = range\(1, 5\): must be consecutive and start at 0"):
        network.step(x, modulation, None, range(1, 5))


@pytest.mark.parametrize("shared", [False, True])
def test_initialisation_follows_its_table_and_its_seed(shared):
    config = replace(TINY, shared_adaln=shared)
    network = Generator(config)
    initialise(network, seed=0)
    weights, base = dict(network.named_parameters()), 1 / math.sqrt(3 * config.width)
    assert weights["head.weight"].std().item() == pytest.approx(base / 50, rel=0.2)
    assert weights["blocks.1.mlp.fc2.weight"].std().item() == pytest.approx(base / 2, rel=0.2)  # depth 2
    rows = weights["shared_adaln.weight" if shared else "blocks.0.adaln.weight"]
    for vectors, std in zip(rows.chunk(3), (1e-3 * base, base / 2, base / 2), strict=True):
        assert vectors.std().item() == pytest.approx(std, rel=0.2)
    dt = torch.nn.functional.softplus(weights["blocks.0.mamba.dt_bias"])
    assert ((dt > 0.99e-3) & (dt < 1.01e-1)).all()

    again = Generator(config).double()
    initialise(again, seed=0)
    torch.testing.assert_close(again.float().state_dict(), network.state_dict(), rtol=0, atol=0)
    initialise(again, seed=1)
    assert not torch.equal(again.pos_embed, network.pos_embed)
