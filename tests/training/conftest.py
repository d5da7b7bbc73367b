"""Runs small enough for tests: 8x8 images, a tokenizer and a generator of a few thousand parameters."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvar.generator.config import GeneratorConfig
from mvar.tokenizer.config import TokenizerConfig
from mvar.training.config import GeneratorTraining, TokenizerTraining

CLASSES = ("bag", "coat", "shoe")
RUN = {
    "steps": 6,
    "batch_size": 5,
    "base_lr": 1e-1,
    "val_images": 4,
    "device": "cpu",
    "dtype": "float32",
    "log_every": 1,
    "validate_every": 2,
    "checkpoint_every": 2,
}
TOKENIZER = TokenizerConfig(
    channels=32, multipliers=(1, 1), res_blocks=1, latent_channels=8, vocab_size=32, phis=3, sides=[1, 2, 4]
)
# Without the perceptual network, which is large beside it; the discriminator joins in at the third step of six.
TOKENIZER_RUN = {"perceptual": 0.0, "adversarial_start": 0.3, "discriminator_channels": 8, "revive_every": 3}
GENERATOR = GeneratorConfig(depth=2, width=64, state_size=16, stochastic_depth=0.2, class_dropout=0.2)


@pytest.fixture(scope="session")
def photos(fashion_arrays, tmp_path_factory) -> Path:
    """class/*.png of 8 real images for each of three classes."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for i, image in enumerate(fashion_arrays["train"][label, :8]):
            Image.fromarray(np.asarray(image)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def tokenizer_run(photos, tmp_path):
    """A tokenizer's run, with changes."""

    def config(**changes) -> TokenizerTraining:
        own = {"data": str(photos), "out": str(tmp_path / "tokenizer"), "model": TOKENIZER, **TOKENIZER_RUN}
        return TokenizerTraining(**{**RUN, **own, **changes})

    return config


@pytest.fixture(scope="session")
def trained_tokenizer(photos, tmp_path_factory) -> Path:
    """The folder of a tokenizer that was trained for two steps."""
    from mvar.training.tokenizer.task import train

    out = tmp_path_factory.mktemp("runs") / "tokenizer"
    config = TokenizerTraining(**RUN, **TOKENIZER_RUN, data=str(photos), out=str(out), model=TOKENIZER)
    train(replace(config, steps=2))
    return out


@pytest.fixture
def finished(trained_tokenizer, tokenizer_run) -> TokenizerTraining:
    """A tokenizer's run of two steps that is over, in a folder of its own."""
    config = tokenizer_run(steps=2)
    shutil.copytree(trained_tokenizer, config.out)
    return config


@pytest.fixture
def generator_run(photos, trained_tokenizer, tmp_path):
    """A generator's run, with changes."""

    def config(**changes) -> GeneratorTraining:
        own = {"data": str(photos), "out": str(tmp_path / "generator"), "model": GENERATOR, "preview_per_class": 1}
        return GeneratorTraining(**{**RUN, **own, "tokenizer": str(trained_tokenizer), **changes})

    return config


@pytest.fixture(scope="session")
def trained_generator(photos, trained_tokenizer, tmp_path_factory) -> Path:
    """The folder of a generator that was trained for two steps."""
    from mvar.training.generator.task import train

    out = tmp_path_factory.mktemp("runs") / "generator"
    own = {"data": str(photos), "out": str(out), "model": GENERATOR, "preview_per_class": 1, "steps": 2}
    train(GeneratorTraining(**{**RUN, **own}, tokenizer=str(trained_tokenizer)))
    return out
