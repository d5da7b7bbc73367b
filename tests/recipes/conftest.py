"""What tests of recipes share: a few real images, and tiny models of random weights."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.model import Model
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer


@pytest.fixture(scope="session")
def few_images(fashion_excerpt) -> Callable[..., str]:
    """Copies the first images of each class and split into a folder; `classes` limits the classes."""

    def copy(root: Path, per_class: int, classes: int = 10) -> str:
        for split in ("train", "val"):
            for folder in sorted((fashion_excerpt / split).iterdir())[:classes]:
                target = root / split / folder.name
                target.mkdir(parents=True)
                for image in sorted(folder.iterdir())[:per_class]:
                    shutil.copy(image, target)
        return str(root)

    return copy


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Model]:
    """Makes a tiny model whose samples are noise, but differ by class."""

    def make(classes: Sequence[str], sides: list[int], provenance: dict | None = None) -> Model:
        torch.manual_seed(0)
        shared = {"vocab_size": 32, "latent_channels": 8, "sides": sides}
        tokenizer = Tokenizer(TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **shared)).eval()
        generator = Generator(GeneratorConfig(depth=1, width=64, num_classes=len(classes), **shared)).eval()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
        return Model(tokenizer, generator, list(classes), provenance=provenance or {})

    return make
