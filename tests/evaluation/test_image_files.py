"""Image files that `mvar evaluate` once read differently from training."""

import os

import numpy as np
import pytest
from PIL import Image

from mvar.evaluation.sets import open_set


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_photos_of_cameras_are_jpegs(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(12, 10).save(tmp_path / "a.jpg")
    noise(12, 10).save(tmp_path / "b.jpg", "MPO", save_all=True, append_images=[noise(12, 10, 1)])
    noise(10, 12).save(tmp_path / "c.jpg", exif=exif)  # on its side
    found = open_set(str(tmp_path), "reference", allow_jpeg=True)
    assert found.shape == (12, 10)
    pixels = found.batch(range(3)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(pixels[0], pixels[1])
    with Image.open(tmp_path / "c.jpg") as image:
        np.testing.assert_array_equal(pixels[2], np.rot90(np.asarray(image), -1))
    with pytest.raises(ValueError, match=r"'a.jpg' \(3 of 3\) is a JPEG"):
        open_set(str(tmp_path), "reference", allow_jpeg=False)


def test_colours_are_those_of_training(tmp_path, profiles):
    Image.new("RGB", (9, 9), (234, 51, 35)).save(tmp_path / "a.png", icc_profile=profiles["p3"])
    pixels = open_set(str(tmp_path), "samples", allow_jpeg=False).batch(range(1))[0, :, 0, 0]
    assert np.abs(pixels.numpy().astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("name", ["pipe.png", "strip.png", "cut.png"])
def test_what_cannot_be_read_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (900, 8)).save(tmp_path / "strip.png")
    noise(40, 40).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:3000])
    for other in {"pipe.png", "strip.png", "cut.png"} - {name}:
        (tmp_path / other).unlink()
    reason = {"pipe": "not a file", "strip": "900x8 pixels, one side more", "cut": "truncated"}[name[:-4]]
    with pytest.raises(ValueError, match=rf"^samples = [^\n]*: '{name}': {reason}[^\n]*; replace it or remove it$"):
        open_set(str(tmp_path), "samples", allow_jpeg=False)
