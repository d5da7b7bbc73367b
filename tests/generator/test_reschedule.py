import pytest
import torch

from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.generator.reschedule import rescheduled
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer


def generator(sides=(1, 2, 4, 8), **config):
    torch.manual_seed(0)
    network = Generator(GeneratorConfig(depth=1, width=64, num_classes=3, vocab_size=16, sides=list(sides), **config))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.1)
    return network.eval()


def positions(network):
    return network.pos_embed[0].split(network.schedule.areas)


def test_trained_shapes_keep_their_embeddings_and_others_are_interpolated():
    network = generator()
    changed = rescheduled(network, [1, 2, 3, 4, 8, 16])
    old, new = positions(network), positions(changed)
    for i, k in ((0, 0), (1, 1), (2, 3), (3, 4)):
        assert torch.equal(old[i], new[k])
        assert torch.equal(network.level_embed.weight[i], changed.level_embed.weight[k])
    level = changed.level_embed.weight[2]
    low, high = network.level_embed.weight[1], network.level_embed.weight[2]
    share = ((level - low) / (high - low)).mean()
    assert 0.5 < share < 0.65  # 9 tokens between 4 and 16, by their logarithms 0.58
    assert torch.equal(changed.level_embed.weight[5], network.level_embed.weight[3])
    corner = new[5].view(16, 16, -1)[0, 0]
    torch.testing.assert_close(corner, old[3].view(8, 8, -1)[0, 0])
    assert torch.equal(changed.head.weight, network.head.weight)
    sides = [(1, 2), (2, 4), (5, 7)]
    assert rescheduled(network, sides)(torch.tensor([0]), torch.zeros(1, 8 + 35, 32)).shape == (1, 2 + 8 + 35, 16)


def test_a_tokenizer_with_a_phi_for_each_scale_keeps_their_number():
    config = TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, phis=0, sides=[1, 2, 4])
    tokenizer = Tokenizer(config).eval()
    assert tokenizer.rescheduled([1, 2, (4, 6)]).config.image_shape == (8, 12)
    with pytest.raises(ValueError, match="sides has 2 scales, the tokenizer has 3 and a residual convolution for each"):
        tokenizer.rescheduled([1, 2])


def test_a_transposed_image_has_the_transposed_tokens():
    """Height and width are nowhere mixed up: networks with transposed kernels see transposed images alike."""
    config = TokenizerConfig(
        channels=32, multipliers=(1, 1), res_blocks=1, latent_channels=8, vocab_size=64, sides=[1, 2]
    )
    torch.manual_seed(1)
    tall = Tokenizer(config).eval().rescheduled([(1, 1), (2, 1), (4, 3)])
    wide = tall.rescheduled([(1, 1), (1, 2), (3, 4)])
    wide.load_state_dict(
        {n: t.transpose(-1, -2) if t.dim() == 4 else t for n, t in tall.state_dict().items()}, assign=True
    )
    pixels = torch.rand(2, 3, 8, 6)
    upright, lying = tall.encode(pixels), wide.encode(pixels.transpose(2, 3))
    for k, (h, w) in enumerate(tall.config.schedule.shapes):
        assert torch.equal(upright[k].view(-1, h, w), lying[k].view(-1, w, h).transpose(1, 2))
    torch.testing.assert_close(tall.decode(upright), wide.decode(lying).transpose(2, 3), rtol=0, atol=1e-4)
    a, b = tall.generator_inputs(upright), wide.generator_inputs(lying)
    schedule = tall.config.schedule
    for k in (1, 2):
        h, w = schedule.shapes[k]
        where = slice(schedule.offsets[k] - 1, schedule.offsets[k + 1] - 1)
        turned = b[:, where].view(2, w, h, -1).transpose(1, 2).reshape(2, h * w, -1)
        torch.testing.assert_close(a[:, where], turned, rtol=0, atol=1e-5)
