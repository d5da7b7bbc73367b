import re

import pytest
import torch

from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer

SIDES = {"square": [1, 2, 4], "wide": [[1, 2], [2, 3], [3, 6]], "one": [4]}


def build(sides=(1, 2, 4), **changes):
    torch.manual_seed(0)
    settings = {"channels": 32, "multipliers": (1, 1), "res_blocks": 1, "latent_channels": 8, "vocab_size": 32}
    return Tokenizer(TokenizerConfig(sides=list(sides), **settings | changes))


def images(tokenizer, batch=2):
    return torch.rand(batch, 3, *tokenizer.config.image_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_shapes_and_ranges(sides):
    tokenizer = build(sides)
    pixels = images(tokenizer)
    tokens = tokenizer.encode(pixels)
    assert [tuple(t.shape) for t in tokens] == [(2, area) for area in tokenizer.config.schedule.areas]
    assert all(t.dtype == torch.long and t.min() >= 0 and t.max() < 32 for t in tokens)
    restored = tokenizer.reconstruct(pixels)
    assert restored.shape == pixels.shape
    assert restored.min() >= 0
    assert restored.max() <= 1
    assert torch.equal(restored, tokenizer.decode(tokens))
    assert not restored.requires_grad


def test_training_pass_and_tokens_agree_and_only_decoding_clamps():
    tokenizer = build()
    with torch.no_grad():
        tokenizer.decoder.conv_out.weight *= 20
    pixels = images(tokenizer)
    output, quantized = tokenizer(pixels)
    assert output.abs().max() > 1
    expected = (output.detach().clamp(-1, 1) + 1) / 2
    # Straight-through adds f and takes it away again, which rounds.
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(pixels)), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(tokenizer.quantizer.f_hat(tokenizer.encode(pixels)), quantized.f_hat_BZHW)


def test_pixel_losses_train_encoder_and_decoder_not_the_quantizer():
    tokenizer = build()
    output, _ = tokenizer(images(tokenizer))
    output.square().mean().backward()
    for name, parameter in tokenizer.named_parameters():
        if name.startswith("quantizer."):
            assert parameter.grad is None, name
        elif parameter.dim() > 1:  # a bias before a normalisation rightly gets next to nothing
            assert parameter.grad.any(), name


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_generator_inputs_are_downsampled_partial_sums(sides):
    tokenizer = build(sides)
    tokens, schedule = tokenizer.encode(images(tokenizer)), tokenizer.config.schedule
    inputs = tokenizer.generator_inputs(tokens)
    assert inputs.shape == (2, schedule.length - schedule.areas[0], 8)
    for k in range(1, len(schedule)):
        f_hat = tokenizer.quantizer.f_hat(tokens[:k])
        expected = tokenizer.quantizer.input_of(f_hat, k).flatten(2).transpose(1, 2)
        part = inputs[:, schedule.offsets[k] - schedule.areas[0] : schedule.offsets[k + 1] - schedule.areas[0]]
        assert torch.equal(part, expected)
    changed = [*tokens[:-1], (tokens[-1] + 1) % 32]
    assert torch.equal(tokenizer.generator_inputs(changed), inputs)  # the last map is only predicted


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(2, 1, 8, 8), "pixels have shape (2, 1, 8, 8), expected (batch, 3, 8, 8)"),
        (torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), "pixels are torch.uint8: give RGB in [0, 1]"),
        (torch.linspace(-1, 1, 192).view(1, 3, 8, 8), "pixels go from -1 to 1: give RGB in [0, 1]"),
        (torch.full((1, 3, 8, 8), torch.nan), "pixels go from nan to nan: give RGB in [0, 1]"),
    ],
)
def test_pixels_of_another_shape_or_range_are_refused(pixels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build().encode(pixels)
    build().encode(torch.linspace(-1e-4, 1.0001, 192).view(1, 3, 8, 8))


def test_all_that_is_wrong_with_a_config_is_said_at_once():
    for wrong, starts in (
        ({"vocab_size": 0, "phi_ratio": 1.5}, ["vocab_size = 0", "phi_ratio = 1.5"]),
        ({"channels": 48, "multipliers": (1, 2), "sides": [4, 2]}, ["channels = 48", "sides = [4, 2]"]),
        ({"multipliers": ()}, ["multipliers = ()"]),
        ({"multipliers": (1,) * 9}, [f"multipliers = {(1,) * 9}"]),
    ):
        with pytest.raises(ValueError) as caught:
            TokenizerConfig(**wrong)
        assert [line.split(":")[0] for line in str(caught.value).splitlines()] == starts
