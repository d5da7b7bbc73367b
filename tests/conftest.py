"""What tests share: real images (an excerpt of Fashion-MNIST, 200 training and 50 validation images a class), and the
parity cases (outputs of the official code, and the weights that a rule rebuilds, see tests/parity/README.md), a tiny
bundle, webdataset shards, colour profiles and what a refused command prints.
"""

import gc
import io
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when torch is imported

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from mvar.cli import main
from mvar.data.sets.fashion_mnist import FRAME
from mvar.generator.config import GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.model import Model
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer

from . import processes as apart
from .parity_cases import PARITY_CASES, ParityCase, load_case

EXCERPT = Path(__file__).parent / "data" / "fashion-excerpt"
CLASSES = ("Ankle-boot", "Bag", "Coat", "Dress", "Pullover", "Sandal", "Shirt", "Sneaker", "T-shirt-top", "Trouser")


@pytest.fixture(scope="session")
def fashion_arrays() -> dict[str, np.ndarray]:
    """{"train", "val"} -> uint8 (10 classes, images, 28, 28); a class's row is its label in a class-per-folder set."""
    arrays = {}
    for split in ("train", "val"):
        with Image.open(EXCERPT / f"{split}.png") as image:
            sheet = np.asarray(image)
        arrays[split] = sheet.reshape(len(CLASSES), 28, -1, 28).swapaxes(1, 2)
    return arrays


@pytest.fixture(scope="session")
def fashion_excerpt(fashion_arrays, tmp_path_factory) -> Path:
    """What `mvar data fashion-mnist` writes, with fewer images; read only, as all tests share it."""
    root = tmp_path_factory.mktemp("fashion-excerpt")
    for split, images in fashion_arrays.items():
        for name, row in zip(CLASSES, images, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, image in enumerate(row):
                Image.fromarray(np.pad(image, FRAME)).save(folder / f"{i:04d}.png")
    return root


# Their tests share a start of half a minute, which a worker that steals some of them would repeat, or last as long.
FIRST = ("test_parallel.py", "test_page.py", "test_work.py", "test_load.py")


def pytest_collection_modifyitems(items):
    """At the end of a run long tests would leave one of the workers without work."""
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish():
    """Collect garbage seldom: looking through all that was imported takes a tenth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.fixture(autouse=True, scope="session")
def no_drawing():
    """A run's curves take a second or more to draw; that they are drawn is seen, the picture has a test of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mvar.training.run.curves.plot_curves", lambda records, path: path.touch())
        yield


# --- the command ---


@pytest.fixture(scope="session")
def processes() -> ModuleType:
    """Code in processes of its own: see processes.py."""
    return apart


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> str:
    """A bundle of a tiny untrained model of 8x8 pixels with two classes; read only."""
    torch.manual_seed(0)
    shared = {"latent_channels": 8, "vocab_size": 32, "sides": [1, 2, 4]}
    tokenizer = Tokenizer(TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **shared)).eval()
    generator = Generator(GeneratorConfig(depth=1, width=64, num_classes=2, **shared)).eval()
    initialise(generator, seed=0)
    folder = tmp_path_factory.mktemp("bundle")
    Model(tokenizer, generator, ["cat", "dog"]).save(folder)
    return str(folder)


@pytest.fixture
def refused(capsys) -> Callable[..., list[str]]:
    """Run a command that must exit with 2 and give the lines that it prints."""

    def run(*arguments: str) -> list[str]:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return captured.err.splitlines()

    return run


# --- parity ---


@pytest.fixture(scope="session")
def load_parity() -> Callable[[str], ParityCase]:
    """Load a parity case by name; its tensors are shared, so do not write to them."""
    return load_case


@pytest.fixture(scope="session", params=PARITY_CASES)
def parity(request: pytest.FixtureRequest) -> ParityCase:
    """Each of the five parity cases."""
    return load_case(request.param)


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """Encodes an image of noise that a number decides."""

    def encoded(number: int, size: tuple[int, int] = (20, 16), kind: str = "PNG") -> bytes:
        content = io.BytesIO()
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, kind)
        return content.getvalue()

    return encoded


@pytest.fixture
def write_shard() -> Callable[[Path, dict[str, dict[str, Any]]], Path]:
    """Writes {key: {suffix: content}} as a shard by webdataset's own writer, which encodes numbers and objects."""

    def write(path: Path, samples: dict[str, dict[str, Any]]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with webdataset.TarWriter(str(path)) as writer:
            for key, fields in samples.items():
                writer.write({"__key__": key, **fields})
        return path

    return write


@pytest.fixture
def write_tar() -> Callable[[Path, list[tuple[str, Any]]], Path]:
    """Writes members in order: bytes as a file, text as a symbolic link to it, else a ready `TarInfo`."""

    def write(path: Path, members: list[tuple[str, Any]]) -> Path:
        with tarfile.open(path, "w") as tar:
            for name, content in members:
                info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
                info.name = name
                if isinstance(content, bytes):
                    info.size = len(content)
                elif isinstance(content, str):
                    info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
        return path

    return write


@pytest.fixture
def three_shards(write_shard, picture, tmp_path) -> str:
    """The pattern of train-0.tar to train-2.tar: 8 samples each, image i with key 00i and label i % 4."""
    for shard in range(3):
        numbers = range(8 * shard, 8 * shard + 8)
        samples = {f"{i:03d}": {"png": picture(i), "cls": i % 4} for i in numbers}
        write_shard(tmp_path / "shards" / f"train-{shard}.tar", samples)
    return str(tmp_path / "shards" / "train-{0..2}.tar")


# --- colour profiles ---

P3 = [(0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)]  # primaries in XYZ, by D50
SRGB = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)]


def icc(kind: bytes, space: bytes, connection: bytes, **tags: bytes) -> bytes:
    """An ICC profile of these tags."""
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name.encode(), start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = (128 + len(table + body), 0x04200000, kind, space, connection, b"acsp", fixed(0.9642, 1, 0.8249))
    return struct.pack(">I4xI4s4s4s12x4s28x12s48x", *head) + table + body


def fixed(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def matrix_profile(primaries: list[tuple[float, float, float]]) -> bytes:
    """RGB of these primaries, with the curve of sRGB."""
    curve = b"para\0\0\0\0\0\3\0\0" + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    tags = {f"{c}XYZ": b"XYZ \0\0\0\0" + fixed(*place) for c, place in zip("rgb", primaries, strict=True)}
    return icc(b"mntr", b"RGB ", b"XYZ ", **tags, **{f"{c}TRC": curve for c in "rgb"})


def table_profile(kind: bytes, space: bytes, channels: int) -> bytes:
    """Of the corners of its colours, those with a full first channel are the red of sRGB, the others white."""
    ramp, white, red = bytes(range(256)), bytes((255, 128, 128)), bytes((138, 209, 198))  # Lab in 8 bits
    half = 2 ** (channels - 1)
    head = b"mft1\0\0\0\0" + bytes((channels, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    return icc(kind, space, b"Lab ", A2B0=head + ramp * channels + white * half + red * half + ramp * 3)


@pytest.fixture(scope="session")
def profiles() -> dict[str, bytes]:
    """Display P3; sRGB; grey with a gamma of 1.8; CMYK, and RGB of a scanner, that only tell what colours look like."""
    return {
        "p3": matrix_profile(P3),
        "srgb": matrix_profile(SRGB),
        "grey": icc(b"mntr", b"GRAY", b"XYZ ", kTRC=b"para\0\0\0\0\0\0\0\0" + fixed(1.8)),
        "cmyk": table_profile(b"prtr", b"CMYK", 4),
        "scanner": table_profile(b"scnr", b"RGB ", 3),
    }
