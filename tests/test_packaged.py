"""The models that ship with the package are there, complete, small, and do what they were trained for."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mvar
from mvar.checkpoint.hub import packaged_models, packaged_root

MEGABYTE = 1_000_000
# Most megabytes, and the PSNR in dB that the tokenizer reaches on images it has not seen.
MODELS = {"fashion-mnist": (12, 25.0), "icons": (40, 20.0), "icons32": (2, 15.0), "fashion32": (2, 20.0)}
GENERATORS = ("fashion-mnist", "icons")  # those that draw; the others are tokenizers alone
# Four icons each, in rows, by designers that were not trained on.
ICONS = Path(__file__).parent / "data" / "icons-held-out.png"
CONCEPTS = ("anchor", "bell", "camera", "cloud", "house", "key", "lock", "star", "train", "umbrella")


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return mvar.load(name)


@pytest.fixture
def held_out(name, model, fashion_arrays):
    """A few held-out images of some classes: pixels in [0, 1], (N, 3, H, W), and labels."""
    if name.startswith("icons"):
        with Image.open(ICONS) as sheet:
            rows = torch.from_numpy(np.asarray(sheet) / np.float32(255)).unfold(0, 64, 64).unfold(1, 64, 64)
        pixels = rows[:, :1].flatten(0, 1)[:, None].expand(-1, 3, -1, -1)
        if name == "icons32":
            return torch.nn.functional.interpolate(pixels, (32, 32), mode="area"), None
        return pixels, torch.tensor(model.label_ids(CONCEPTS))
    images = np.pad(fashion_arrays["val"][:, :5], ((0, 0), (0, 0), (2, 2), (2, 2)))[..., None].repeat(3, -1)
    C, n = images.shape[:2]
    pixels = torch.from_numpy(images.reshape(C * n, *images.shape[2:])).permute(0, 3, 1, 2) / 255
    return pixels, torch.arange(C).repeat_interleave(n)


def test_every_packaged_model_is_looked_at_here():
    assert packaged_models() == sorted(MODELS)


def test_size_and_classes(name, model):
    folder = packaged_root() / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MODELS[name][0] * MEGABYTE
    assert model.classes == sorted(model.classes)


def test_tokenizer_restores_images_it_has_not_seen(name, model, held_out):
    pixels, _ = held_out
    mse = (model.tokenizer.reconstruct(pixels) - pixels).square().mean((1, 2, 3))
    assert float(-10 * mse.log10().mean()) > MODELS[name][1]


@pytest.mark.parametrize("name", GENERATORS, scope="module")
def test_generator_knows_classes_it_has_not_seen(model, held_out):
    pixels, labels = held_out
    tokens = model.tokenizer.encode(pixels)
    inputs = model.tokenizer.generator_inputs(tokens)

    def bits(labels):
        with torch.no_grad():
            logits = model.generator(labels, inputs)
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.cat(tokens, 1))
        return float(nll) / math.log(2)

    right, wrong = bits(labels), bits((labels + 5) % len(model.classes))
    assert right < 0.8 * math.log2(model.tokenizer.config.vocab_size)
    assert right < wrong - 0.1
