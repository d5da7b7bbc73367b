"""Training on shards, streams and folders as users have them."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvar.model import load
from mvar.training.generator import task as generator
from mvar.training.tokenizer import task as tokenizer

from .runs import checkpoint, same_bits, train_until


@pytest.fixture(params=["tokenizer", "generator"])
def run(request, tokenizer_run, generator_run):
    """(train, task class, config with changes) of each kind of run."""
    if request.param == "tokenizer":
        return tokenizer.train, tokenizer.TokenizerTask, tokenizer_run
    return generator.train, generator.GeneratorTask, generator_run


def test_shards_resume_bit_for_bit_with_other_workers(tokenizer_run, three_shards, tmp_path):
    train, task, config = tokenizer.train, tokenizer.TokenizerTask, tokenizer_run
    config = config(validate_every=6, data=three_shards, resize_factor=1.25, workers=0, out=str(tmp_path / "whole"))
    train(config)
    broken = replace(config, out=str(tmp_path / "broken"), workers=3)
    train_until(3, train, task, broken)
    train(replace(broken, resume=True, workers=1))
    assert same_bits(checkpoint(config.out)["tensors"], checkpoint(broken.out)["tensors"])


def test_a_stream_is_trained_on_and_says_where_it_resumes(run, three_shards, tmp_path, capsys):
    train, task, config = run
    secret = f"pipe:cat {three_shards} # key=secret"
    config = config(validate_every=6, data=secret, val_data=three_shards, out=str(tmp_path / "run"))
    train_until(5, train, task, config)
    assert "a stream of 3 shards of 4 classes, 24 images for validation" in capsys.readouterr().err
    model = train(replace(config, resume=True))
    assert "the stream resumes at the beginning of shard 3 of 3 in epoch 1" in capsys.readouterr().err
    assert model.classes == list("0123")
    assert "secret" not in str(model.provenance)


# Latin-1, as old archives unpack on Linux: a name that is not UTF-8.
ODD_BYTES, ODD_CLASS = (b"caf\xe9", "caf\\xe9") if sys.platform == "linux" else (b"cafe", "cafe")
BAD = {"cats/cut.jpg": "truncated", "cats/broken link.png": "broken link", "Ящерица и змея/dot.png": "1x1 pixels"}


def test_a_messy_folder_is_trained_on_and_sampled(tokenizer_run, generator_run, tmp_path):
    """Images of several modes under odd names, and some that cannot be read."""
    root = tmp_path / "messy"
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise, "RGBA")
    cats, snakes, odd = root / "cats", root / "Ящерица и змея", Path(os.fsdecode(os.fsencode(root) + b"/" + ODD_BYTES))
    for folder in (cats, snakes / "deeper", odd):
        folder.mkdir(parents=True)
    rgb.convert("L").save(cats / "grey (1).png")
    rgb.convert("CMYK").save(cats / "print.jpg")
    rgb.save(cats / "深い.png")
    rgba.save(snakes / "deeper" / "glass.webp")
    rgb.save(snakes / "jpeg in truth.png", format="JPEG")
    for i in range(3):
        rgb.save(odd / f"{i}.png")
    rgb.resize((90, 90)).save(cats / "cut.jpg")
    (cats / "cut.jpg").write_bytes((cats / "cut.jpg").read_bytes()[:-900])
    (cats / "broken link.png").symlink_to("gone.png")
    Image.new("RGB", (1, 1)).save(snakes / "dot.png")

    with pytest.raises(ValueError, match=r"cannot be used:\n") as refused:
        generator.train(generator_run(data=str(root), on_bad_image="error"))
    assert all(name in str(refused.value) for name in BAD)
    assert not Path(generator_run().out).exists()
    small = {"data": str(root), "steps": 1, "resize_factor": 1.25}
    with pytest.warns(UserWarning, match="cannot be used") as caught:
        tokenizer.train(tokenizer_run(**small))
    (report,) = (str(warning.message) for warning in caught)
    first, *lines = report.splitlines()
    assert first == f"3 of 11 images in {str(root)!r} cannot be used:"
    for name, reason in BAD.items():
        assert any(name in line and reason in line for line in lines), (name, lines)
    with pytest.warns(UserWarning, match="cannot be used"):
        generator.train(generator_run(**small, tokenizer=tokenizer_run().out))
    model = load(generator_run().out, device="cpu")
    assert model.classes == [ODD_CLASS, "cats", "Ящерица и змея"]
    out = model.sample(["cats", "ящерица и змея", 0])
    assert out.pixels.shape == (3, 3, 8, 8)
    assert out.pixels.isfinite().all()
