"""Our numbers are the official code's: tokens identical, floats within 1e-4 in float32, on five tiny models."""

import pytest
import torch

from mvar.checkpoint import official
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import Sampler


@pytest.fixture(scope="module")
def model(parity):
    return official.load(parity.tokenizer, parity.generator)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def official_tokens(parity):
    return [parity.outputs[f"idx_{k}"] for k in range(len(parity.settings["scales"]))]


@torch.no_grad()
def test_encoder_and_tokens(parity, model):
    pixels = (parity.outputs["image"] + 1) / 2
    close(model.tokenizer.latent(pixels), parity.outputs["encoder_f"])
    tokens = model.tokenizer.encode(pixels)
    assert len(tokens) == len(parity.settings["scales"])
    for actual, expected in zip(tokens, official_tokens(parity), strict=True):
        assert torch.equal(actual, expected)


@torch.no_grad()
def test_latents_and_reconstruction(parity, model):
    quantizer, tokens = model.tokenizer.quantizer, official_tokens(parity)
    close(quantizer.f_hat(tokens), parity.outputs["f_hat"])
    close(quantizer.f_hat(tokens[:2]), parity.outputs["f_hat_scale1"])
    close(2 * model.tokenizer.decode(tokens) - 1, parity.outputs["reconstruction"])


@torch.no_grad()
def test_teacher_forcing(parity, model):
    inputs_BlZ = model.tokenizer.generator_inputs(official_tokens(parity))
    close(inputs_BlZ, parity.outputs["teacher_forcing_input"])
    logits_BLV = model.generator(parity.outputs["label"], parity.outputs["teacher_forcing_input"])
    close(logits_BLV, parity.outputs["teacher_forced_logits"])


@torch.no_grad()
def test_greedy_decoding_scale_by_scale(parity, model):
    quantizer, generator = model.tokenizer.quantizer, model.generator
    K, labels_B = len(quantizer.schedule), parity.outputs["label"]
    labels_R = torch.cat((labels_B, torch.full_like(labels_B, parity.settings["num_classes"])))
    modulation, state = generator.modulation(labels_R), generator.initial_state(len(labels_R))
    f_hat_BZHW, inputs_RlZ = quantizer.zeros(len(labels_B)), None
    for k in range(K):
        scale = range(k, k + 1)
        logits_RlV, state = generator.step(generator.embed(inputs_RlZ, modulation, scale), modulation, state, scale)
        given_BlV, null_BlV = logits_RlV.chunk(2)
        t = parity.settings["guidance"] * k / (K - 1)
        guided_BlV = (1 + t) * given_BlV - t * null_BlV
        close(guided_BlV, parity.outputs[f"greedy_cfg_logits_{k}"])
        f_hat_BZHW = quantizer.add(f_hat_BZHW, quantizer.lookup(guided_BlV.argmax(-1), k), k)
        if k + 1 < K:
            inputs_RlZ = quantizer.input_of(f_hat_BZHW, k + 1).flatten(2).transpose(1, 2).repeat(2, 1, 1)
    close(model.tokenizer.decode_latent(f_hat_BZHW), parity.outputs["greedy_image"])


def test_greedy_decoding_by_the_engine(parity, model):
    settings = SamplingSettings(guidance=parity.settings["guidance"], top_k=1, top_p=1.0)
    out = Sampler(model.tokenizer, model.generator, 0, settings).sample(parity.outputs["label"], [0, 1])
    for k, tokens_BP in enumerate(out.tokens):
        assert torch.equal(tokens_BP, parity.outputs[f"greedy_cfg_logits_{k}"].argmax(-1))
    close(out.pixels, parity.outputs["greedy_image"])
