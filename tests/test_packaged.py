"""The models that ship with the package are there, whole, small, and do what they were trained for."""

import math

import pytest
import torch

import mvar
from mvar.checkpoint.hub import packaged_models, packaged_root
from mvar.data.images import ImageFolder
from mvar.data.source import PixelSource

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def model():
    return mvar.load("fashion-mnist")


@pytest.fixture(scope="module")
def garments(fashion_excerpt):
    """Five held-out images a class, as the model's size wants them: pixels in [0, 1] and labels."""
    index = ImageFolder.scan(fashion_excerpt / "val")
    source = PixelSource.read(index, (32, 32), resize_factor=1.0)
    pixels, labels = source.spread(50).batch(range(50))
    assert sorted(source.classes) == source.classes
    return pixels / 255, labels


def test_size_of_the_files(model):
    folder = packaged_root() / "fashion-mnist"
    assert "fashion-mnist" in packaged_models()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12 * MEGABYTE


def test_tokenizer_restores_real_garments(model, garments):
    pixels, _ = garments
    mse = (model.tokenizer.reconstruct(pixels) - pixels).square().mean((1, 2, 3))
    assert float(-10 * mse.log10().mean()) > 25  # dB


def test_generator_knows_real_garments(model, garments):
    pixels, labels = garments
    tokens = model.tokenizer.encode(pixels)
    inputs = model.tokenizer.generator_inputs(tokens)

    def bits(labels):
        with torch.no_grad():
            logits = model.generator(labels, inputs)
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.cat(tokens, 1))
        return float(nll) / math.log(2)

    right, wrong = bits(labels), bits((labels + 5) % 10)
    assert right < 0.8 * math.log2(model.tokenizer.config.vocab_size)
    assert right < wrong - 0.1
