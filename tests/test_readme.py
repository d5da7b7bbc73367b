"""The README's commands and Python run as they stand; training ones with a handful of steps."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from mvar.cli import main
from mvar.data import builtin

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
FEW_STEPS = ["--steps", "2", "--batch-size", "4"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


pytestmark = pytest.mark.filterwarnings("ignore:.*smaller than 32x32")


@pytest.fixture
def workplace(tmp_path, monkeypatch, fashion_excerpt):
    """A folder with what the README takes for granted: my-images."""
    for split, most in (("train", 4), ("val", 2)):
        for folder in sorted((fashion_excerpt / split).iterdir())[:2]:
            target = tmp_path / "my-images" / split / folder.name
            target.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:most]:
                shutil.copy(image, target)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def few_fashion_files(fashion_arrays, monkeypatch):
    """`mvar data fashion-mnist` finds two images a class instead of 7,000."""
    few = {}
    for split, images in fashion_arrays.items():
        few[f"{split}_images"] = images[:, :2].reshape(-1, 28, 28)
        few[f"{split}_labels"] = np.arange(len(images)).repeat(2)
    monkeypatch.setattr(builtin, "fashion_mnist_arrays", lambda source: few)


@pytest.mark.usefixtures("few_fashion_files")
def test_commands(workplace):
    ran = []
    for line in "".join(blocks("bash")).splitlines():
        arguments = shlex.split(line)
        assert arguments[0] == "mvar"
        extra = FEW_STEPS if arguments[1] == "train" else []
        main([*arguments[1:], *extra])
        ran.append(arguments[1])
    assert set(ran) == {"train", "sample", "data", "info"}
    for made in ("samples.png", "sheet.png", "smooth.png", "samples.npz", "images", "data/fashion-mnist/val"):
        assert (workplace / made).exists(), made


def test_python(workplace):
    for block in blocks("python"):
        few = block.replace('preset("tiny32", ', 'preset("tiny32", steps=2, batch_size=4, ')
        exec(compile(few, "README.md", "exec"), {})
    assert (workplace / "sandal.png").exists()
    assert (workplace / "runs" / "tokenizer-2" / "tokenizer.safetensors").exists()
