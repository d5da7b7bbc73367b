"""The commands and the Python of README and documentation run as they stand, with a handful of steps and images."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvar.cli import main
from mvar.data.sets import fashion_mnist

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
MODELS = [f"docs/models/{path.name}" for path in sorted((ROOT / "docs" / "models").glob("*.md"))]
FEW_STEPS = ["--steps", "2", "--batch-size", "2"]
MOST = {"--per-class": 2, "--n": 1, "--of": 3}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def commands() -> dict[str, list[str]]:
    """The lines of each page but those that stand on a page before it too."""
    seen: set[str] = set()
    own = {}
    for page in PAGES:
        lines = "".join(blocks(page, "bash")).splitlines()
        own[page] = [line for line in lines if line not in seen]
        seen.update(lines)
    return {page: lines for page, lines in own.items() if lines}


pytestmark = pytest.mark.filterwarnings(r"ignore:.*smaller than \d+x\d+")


@pytest.fixture
def workplace(tmp_path, monkeypatch, fashion_excerpt):
    """A folder with what the pages take for granted: my-images, photo.png, mask.png, and images of some classes."""
    for split, most in (("train", 4), ("val", 2)):
        for folder in sorted((fashion_excerpt / split).iterdir())[:2]:
            target = tmp_path / "my-images" / split / folder.name
            target.mkdir(parents=True)
            for image in sorted(folder.iterdir())[:most]:
                shutil.copy(image, target)
            few = tmp_path / "images" / folder.name
            few.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, few)
    with Image.open(image) as photo:
        photo.resize((64, 64)).save(tmp_path / "photo.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (10, 20, 40, 50))
    mask.save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def few_fashion_files(fashion_arrays, monkeypatch):
    """`mvar data fashion-mnist` finds two images a class instead of 7,000."""
    few = {}
    for split, images in fashion_arrays.items():
        few[f"{split}_images"] = images[:, :2].reshape(-1, 28, 28)
        few[f"{split}_labels"] = np.arange(len(images)).repeat(2)
    monkeypatch.setattr(fashion_mnist, "fashion_mnist_arrays", lambda source: few)


@pytest.mark.usefixtures("few_fashion_files")
@pytest.mark.filterwarnings("ignore:the model was not trained at these scales")
@pytest.mark.parametrize("page", commands())
def test_commands(workplace, page):
    for line in commands()[page]:
        arguments = shlex.split(line)
        assert arguments[0] == "mvar"
        if "--minutes" in arguments:  # a test has none to spare
            place = arguments.index("--minutes")
            arguments[place : place + 2] = ["--preset", "quick32"]
        for option in MOST.keys() & set(arguments):
            place = arguments.index(option) + 1
            arguments[place] = str(min(int(arguments[place]), MOST[option]))
        main([*arguments[1:], *(FEW_STEPS if arguments[1] == "train" else [])])
        for option in ("--out", "--out-dir", "--npz", "--sheet"):
            if option in arguments:
                assert (workplace / arguments[arguments.index(option) + 1]).exists()


@pytest.mark.filterwarnings("ignore:the model was not trained at these scales")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python(workplace, page):
    for block in blocks(page, "python"):
        few = re.sub(r'preset\(\s*"tiny32",', 'preset("tiny32", steps=2, batch_size=2,', block)
        assert ("preset(" in few) == ("steps=2" in few)
        exec(compile(few, page, "exec"), {})


def test_links_and_pictures_are_there():
    for page in [*PAGES, *MODELS, "CONTRIBUTING.md", "CHANGELOG.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), (page, target)
