import gzip
import os
import struct

import numpy as np
import pytest
from PIL import Image

from mvar.data.sets import fashion_mnist as module
from mvar.data.sets.fashion_mnist import FASHION_MNIST_CLASSES, FILES, fashion_mnist, fashion_mnist_arrays
from mvar.data.splits import open_splits


def write_idx(path, array):
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    found = {}
    for split, n in (("train", 25), ("val", 12)):
        found[f"{split}_images"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        found[f"{split}_labels"] = (np.arange(n) % 10).astype(np.uint8)
    return found


@pytest.fixture
def source(arrays, tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for key, name in FILES.items():
        write_idx(folder / name, arrays[key])
    return folder


def test_images_come_back_with_their_class(arrays, source, tmp_path):
    out = tmp_path / "fashion"
    fashion_mnist(str(out), str(source))
    with Image.open(out / "train" / "Coat" / "00014.png") as image:
        assert image.mode == "L"
    for split, got in zip(("train", "val"), open_splits(out, (32, 32), resize_factor=1.0), strict=True):
        assert got.classes == sorted(FASHION_MNIST_CLASSES)
        assert len(got) == len(arrays[f"{split}_labels"])
        pixels, labels = got.batch(range(len(got)))
        for path, image, label in zip(got.paths, pixels, labels.tolist(), strict=True):
            number = int(path.stem)
            assert (image[:, 2:-2, 2:-2].numpy() == arrays[f"{split}_images"][number]).all()
            assert image.sum() == image[:, 2:-2, 2:-2].sum()
            assert got.classes[label] == FASHION_MNIST_CLASSES[arrays[f"{split}_labels"][number]]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-784])),
        lambda path: write_idx(path, np.zeros((25, 28, 14), np.uint8)),
    ],
)
def test_damaged_files_are_named(source, damage):
    damage(source / FILES["train_images"])
    said = r"^source: '.*/train-images-idx3-ubyte\.gz' is missing or damaged \(.*\); give the four original files$"
    with pytest.raises(ValueError, match=said):
        fashion_mnist_arrays(str(source))


def test_the_installed_package_comes_first_then_a_download(source, arrays, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "INSTALLED", source)
    assert (fashion_mnist_arrays()["val_labels"] == arrays["val_labels"]).all()

    monkeypatch.setattr(module, "INSTALLED", type(source)("/nowhere/fashion-mnist"))
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in {
        "apt-get": '[ "$*" = "download dataset-fashion-mnist" ] && touch set.deb',
        "dpkg": f'[ "$2" = set.deb ] && mkdir -p "$3/nowhere" && cp -r {source} "$3/nowhere/fashion-mnist"',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    assert (fashion_mnist_arrays()["train_images"] == arrays["train_images"]).all()

    (tools / "apt-get").write_text("#!/bin/sh\necho E: Unable to locate package >&2\nexit 100\n")
    fix = r"run apt-get update, or give --source DIR with the four files train-images-idx3-ubyte\.gz, train-labels"
    with pytest.raises(ValueError, match=rf"could not be downloaded \(E: Unable to locate package\); {fix}"):
        fashion_mnist_arrays()
