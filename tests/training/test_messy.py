"""From a folder as users have it to samples: train tokenizer and generator, then draw."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvar.model import load
from mvar.training.generator import task as generator
from mvar.training.tokenizer import task as tokenizer

BAD = {
    "cats/empty.png": "empty file",
    "cats/cut.jpg": "truncated",
    "cats/text.png": "not a PNG, JPEG or WebP file",
    "cats/broken link.png": "broken link",
    "Ящерица и змея/dot.png": "1x1 pixels",
    "Ящерица и змея/strip.png": "4000x3 pixels",
}
# Latin-1, as old archives unpack on Linux: a name that is not UTF-8.
ODD_BYTES, ODD_CLASS = (b"caf\xe9", "caf\\xe9") if sys.platform == "linux" else (b"cafe", "cafe")


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """Three classes of readable images in every mode, and one bad file of each kind; returns folder and good count."""
    root = tmp_path_factory.mktemp("messy")
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    rgb, rgba = Image.fromarray(noise[..., :3]), Image.fromarray(noise, "RGBA")
    cats, snakes, odd = root / "cats", root / "Ящерица и змея", Path(os.fsdecode(os.fsencode(root) + b"/" + ODD_BYTES))
    for folder in (cats, snakes / "deeper", odd):
        folder.mkdir(parents=True)
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.convert("L").save(cats / "grey (1).png")
    rgb.convert("P").save(cats / "palette.PNG")
    rgb.convert("CMYK").save(cats / "print.jpg")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(cats / "深い.png")
    rgb.save(snakes / "turned.jpeg", exif=turned)
    rgba.save(snakes / "deeper" / "glass.webp")
    rgb.save(snakes / "jpeg in truth.png", format="JPEG")
    rgba.convert("LA").save(snakes / "grey glass.png")
    for i in range(3):
        rgb.save(odd / f"{i}.png")

    (cats / "empty.png").touch()
    rgb.resize((90, 90)).save(cats / "cut.jpg")
    (cats / "cut.jpg").write_bytes((cats / "cut.jpg").read_bytes()[:-900])
    (cats / "text.png").write_text("no image")
    (cats / "broken link.png").symlink_to("gone.png")
    Image.new("RGB", (1, 1)).save(snakes / "dot.png")
    Image.new("RGB", (4000, 3)).save(snakes / "strip.png")
    (root / ".DS_Store").touch()
    return root, 11


def test_a_messy_folder_is_trained_on_and_sampled(messy, tokenizer_run, generator_run, tmp_path):
    root, good = messy
    small = {"data": str(root), "steps": 2, "resize_factor": 1.25}
    with pytest.warns(UserWarning, match="cannot be used") as caught:
        tokenizer.train(tokenizer_run(**small))
    (report,) = (str(warning.message) for warning in caught)
    first, *lines = report.splitlines()
    assert first == f"{len(BAD)} of {good + len(BAD)} images in {str(root)!r} cannot be used:"
    for name, reason in BAD.items():
        assert any(name in line and reason in line for line in lines), (name, lines)

    with pytest.warns(UserWarning, match="cannot be used"):
        generator.train(generator_run(**small, tokenizer=tokenizer_run().out))
    model = load(generator_run().out, device="cpu")
    assert model.classes == [ODD_CLASS, "cats", "Ящерица и змея"]
    out = model.sample(["cats", "ящерица и змея", 0])
    assert out.pixels.shape == (3, 3, 8, 8)
    assert out.pixels.isfinite().all()


def test_on_bad_image_error_refuses_before_any_work(messy, tokenizer_run, generator_run):
    root, _ = messy
    for train, config in (
        (tokenizer.train, tokenizer_run(data=str(root), on_bad_image="error")),
        (generator.train, generator_run(data=str(root), on_bad_image="error")),
    ):
        with pytest.raises(ValueError, match=r"cannot be used:\n") as caught:
            train(config)
        assert all(name in str(caught.value) for name in BAD)
        assert not Path(config.out).exists()
