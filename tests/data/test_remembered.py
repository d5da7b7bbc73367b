"""Tokens that are remembered: encoded once, kept in a file, and never taken for those of another image or tokenizer."""

import copy
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from mvar.data.images.folders import ImageFolder
from mvar.data.loader import Loader, Slices
from mvar.data.source import PixelSource
from mvar.data.tokens.encoded import EncodedImages, RememberedTokens
from mvar.model import load
from mvar.tokenizer.network import Tokenizer

N = 7


@pytest.fixture
def folder(fashion_arrays, tmp_path):
    root = tmp_path / "photos"
    for i, image in enumerate(fashion_arrays["train"][0, :N]):
        (root / str(i % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(image)).save(root / str(i % 2) / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def tokenizer(bundle) -> Tokenizer:
    return load(bundle, "cpu", "float32").tokenizer


@pytest.fixture
def counted(monkeypatch):
    """The number of images of each call of an encoder."""
    calls, encode = [], Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", lambda self, pixels: calls.append(len(pixels)) or encode(self, pixels))
    return calls


@pytest.fixture
def remembered(folder, tokenizer, tmp_path):
    """The folder's images with what a file remembers of them."""

    def make(path=tmp_path / "tokens.npy", keep=True, tokenizer=tokenizer):
        images = PixelSource.read(ImageFolder.scan(folder), (8, 8), resize_factor=1.0)
        made = RememberedTokens(EncodedImages(images=images, tokenizer=tokenizer))
        if path is not None:
            made.make_file(path, keep)
            made.use_file(path)
        return made

    return make


def expected(remembered, numbers):
    return torch.cat([remembered._encoded.tokens([i]) for i in numbers])


@pytest.mark.parametrize("batch_size", [3, 12])
def test_an_image_is_encoded_when_it_first_comes_up_and_once(remembered, counted, batch_size):
    source = remembered(None)
    loader = Loader(source, Slices(batch_size), 0)
    for step in range(-(-3 * N // batch_size)):
        rows, labels, _ = loader.batch(step)
        tokens = source.tokens(rows)
        assert sum(counted) == min((step + 1) * batch_size, N)
        assert tokens.dtype == torch.int64
        assert torch.equal(labels, source.labels[rows])
        calls = len(counted)
        assert torch.equal(tokens, expected(source, rows.tolist()))
        del counted[calls:]
    loader.close()
    assert source.tokens(torch.tensor([2, 2, 0])).shape == (3, 21)
    assert sum(counted) == N


def test_a_file_remembers_for_the_next_start_and_other_ranks(remembered, counted):
    first, beside = remembered(), remembered()
    tokens = first.tokens(torch.arange(4))
    assert torch.equal(beside.tokens(torch.arange(4)), tokens)
    later = remembered()
    assert torch.equal(later.tokens(torch.arange(4)), tokens)
    assert counted == [4]
    remembered(keep=False).tokens(torch.arange(4))
    assert counted == [4, 4]


@pytest.mark.parametrize("what", ["image", "order", "tokenizer", "torn", "size", "garbage"])
def test_what_does_not_belong_counts_as_not_yet(remembered, counted, folder, tokenizer, tmp_path, what):
    path, encoder, again = tmp_path / "tokens.npy", tokenizer, N
    remembered().tokens(torch.arange(N))
    if what == "image":
        shutil.copy(folder / "0" / "2.png", folder / "0" / "0.png")
        again = 1
    elif what == "order":  # as many images, each at another place
        (folder / "0" / "0.png").rename(folder / "1" / "9.png")
    elif what == "tokenizer":
        encoder = copy.deepcopy(tokenizer)
        encoder.quantizer.codebook.data.mul_(-1)
    elif what == "torn":
        os.truncate(path, path.stat().st_size - 5)
        with open(path, "ab") as file:
            file.write(bytes(5))
        again = 1
    elif what == "size":
        np.save(path, np.load(path)[:-1])
    else:
        path.write_bytes(b"\x93NUMPY, or so")
    counted.clear()
    source = remembered(tokenizer=encoder)
    tokens = source.tokens(torch.arange(N))
    assert counted == [again]
    assert torch.equal(tokens, expected(source, range(N)))
