"""Metadata, colours, transparency, damage, images of Pillow; which files are read at all."""

import os
import random
import struct
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mvar.data.images import colour
from mvar.data.images.decoding import as_image, as_stored, decode, look

from .by_hand import KINDS, RED, chunk, exif, outcome, plain, png, rgb, samples, saved, segment

# --- modes ---


def test_every_mode_becomes_rgb_whatever_the_suffix(tmp_path):
    assert (rgb(saved(plain(1, "1"), "PNG")) == 255).all()
    palette = plain(0, "P")
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.putpixel((3, 5), 1)
    found = rgb(saved(palette, "PNG", transparency=0))
    assert tuple(found[5, 3]) == (10, 200, 30)
    assert (np.delete(found.reshape(-1, 3), 5 * 16 + 3, 0) == 255).all()
    assert (rgb(saved(plain((1, 2, 3)), "WEBP")) == (1, 2, 3)).all()
    assert np.abs(rgb(saved(plain((0, 0, 0, 128), "RGBA"), "WEBP")) - 127).max() <= 1
    assert np.abs(rgb(saved(plain((0, 51), "LA"), "PNG")) - 204).max() <= 1
    deep = np.linspace(0, 65535, 128).astype(np.uint16).reshape(8, 16)
    assert (rgb(saved(Image.fromarray(deep), "PNG"))[..., 1] == np.round(deep / 257)).all()
    (tmp_path / "really-a-jpeg.png").write_bytes(saved(plain((50, 100, 150)), "JPEG"))
    assert np.abs(np.asarray(decode(tmp_path / "really-a-jpeg.png")).astype(int) - (50, 100, 150)).max() < 8


# --- colours ---


def test_display_p3_becomes_srgb(profiles):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    light = pixels / 255
    light = np.where(light <= 0.04045, light / 12.92, ((light + 0.055) / 1.055) ** 2.4)
    to_srgb = [[1.22494, -0.22494, 0], [-0.04206, 1.04206, 0], [-0.01964, -0.07864, 1.09828]]
    light = (light @ np.transpose(to_srgb)).clip(0, 1)
    expected = 255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    for kind in ("PNG", "WEBP"):
        got = rgb(saved(Image.fromarray(pixels), kind, icc_profile=profiles["p3"]))
        assert np.abs(got - expected).max() <= 1.5
    for kind in KINDS:
        red = rgb(saved(plain(RED), kind, icc_profile=profiles["p3"]))[0, 0]
        assert np.abs(red - (255, 13, 14)).max() <= 3
        assert (rgb(saved(plain(RED), kind))[0, 0] != red).all()
    clear = rgb(saved(plain((234, 51, 35, 128), "RGBA"), "PNG", icc_profile=profiles["p3"]))
    assert np.abs(clear - (255, 127, 127)).max() <= 1
    palette = plain(RED).quantize(2)
    assert np.abs(rgb(saved(palette, "PNG", icc_profile=profiles["p3"])) - (255, 13, 14)).max() <= 3
    srgb = saved(Image.fromarray(pixels), "PNG", icc_profile=profiles["srgb"])
    np.testing.assert_array_equal(rgb(srgb), pixels)
    assert colour._transform(profiles["p3"], "RGB") is colour._transform(bytes(bytearray(profiles["p3"])), "RGB")


def test_grey_and_cmyk_have_profiles_too(profiles):
    light = (100 / 255) ** 1.8
    expected = round(255 * (1.055 * light ** (1 / 2.4) - 0.055))
    for kind in ("PNG", "JPEG"):
        assert np.abs(rgb(saved(plain(100, "L"), kind, icc_profile=profiles["grey"])) - expected).max() <= 1
    deep = Image.fromarray(np.full((8, 16), 100 * 257, np.uint16))
    assert np.abs(rgb(saved(deep, "PNG", icc_profile=profiles["grey"])) - expected).max() <= 1
    clear = saved(plain((100, 0), "LA"), "PNG", icc_profile=profiles["grey"])
    assert (rgb(clear) == 255).all()
    cyan = plain((255, 0, 0, 0), "CMYK")
    assert np.abs(rgb(saved(cyan, "JPEG", icc_profile=profiles["cmyk"])) - (255, 0, 0)).max() <= 4
    assert np.abs(rgb(saved(cyan, "JPEG")) - (0, 255, 255)).max() <= 4  # by the formula


def test_a_profile_that_does_not_serve_counts_as_srgb(profiles):
    p3 = profiles["p3"]
    for profile in (b"junk", p3[:200], p3.replace(b"acsp", b"acsq"), profiles["grey"], profiles["cmyk"]):
        for kind in KINDS:
            assert np.abs(rgb(saved(plain(RED), kind, icc_profile=profile)) - RED).max() <= 2
    assert (rgb(saved(plain(100, "L"), "PNG", icc_profile=p3)) == 100).all()


# --- transparency ---


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_one_transparent_grey_at_every_depth(bits):
    top = 2**bits - 1
    row = [0, top, 1, top // 2] * 4
    for clear in {0, 1, top // 2, top}:
        file = png(samples(row, bits) * 8, bits=bits, colour=0, before=chunk(b"tRNS", struct.pack(">H", clear)))
        expected = [255 if value == clear else round(value * 255 / top) for value in row]
        np.testing.assert_array_equal(rgb(file)[3, :, 1], expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_one_transparent_colour_at_every_depth(bits):
    a, b = (77, 2, 3), (78, 2, 3)  # of 16 bits, their upper bytes are alike
    file = png(samples((a + b) * 8, bits) * 8, bits=bits, before=chunk(b"tRNS", struct.pack(">3H", *a)))
    shown = (0, 0, 0) if bits == 16 else b
    np.testing.assert_array_equal(rgb(file)[0, :2], [(255, 255, 255), shown])
    assert (np.asarray(decode(BytesIO(file), "black"))[0, 0] == 0).all()


def test_deep_alpha_and_transparent_palettes():
    grey = png(samples((0x6400, 0x8000, 0x6400, 0xFFFF) * 8, 16) * 8, bits=16, colour=4)
    np.testing.assert_array_equal(rgb(grey)[0, :2, 0], [round(100 * 128 / 255 + 255 * 127 / 255), 100])
    colour = png(samples((0xFFFF, 0, 0, 0x8000) * 16, 16) * 8, bits=16, colour=6)
    assert np.abs(rgb(colour) - (255, 127, 127)).max() <= 1
    palette = chunk(b"PLTE", bytes((9, 8, 7, 1, 2, 3))) + chunk(b"tRNS", b"\0" * 1 + b"\xff" * 300)
    for bits in (1, 4):
        file = png(samples((0, 1) * 8, bits) * 8, bits=bits, colour=3, before=palette)
        np.testing.assert_array_equal(rgb(file)[5, :2], [(255, 255, 255), (1, 2, 3)])


def test_images_of_pillow_are_read_as_files_are(tmp_path, profiles):
    image = plain(RED)
    as_stored(image).putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == RED, "it was copied"
    for content in (
        saved(plain(RED), "PNG", icc_profile=profiles["p3"]),
        saved(plain((9, 9, 9)), "PNG", transparency=(9, 9, 9)),
        saved(Image.fromarray(np.full((8, 16), 777, np.uint16)), "PNG", transparency=777),
        png(samples([0, 1] * 8, 1) * 8, bits=1, colour=0, before=chunk(b"tRNS", b"\0\0")),
        saved(plain(RED), "JPEG", exif=b"Exif\0\0" + exif(6)),
    ):
        (tmp_path / "a.png").write_bytes(content)
        with Image.open(tmp_path / "a.png") as image:
            before = dict(image.info)
            np.testing.assert_array_equal(as_image(image), rgb(content))
            assert as_stored(image).mode == as_stored(tmp_path / "a.png").mode
            assert image.info == before
    with (
        Image.open(BytesIO(png(bytes(RED) * 128)[:50])) as image,
        pytest.raises(ValueError, match=r"^picture: image file is truncated[^\n]*$"),
    ):
        as_image(image, "picture")


# --- metadata and damage ---


@pytest.mark.parametrize("kind", KINDS)
def test_every_orientation(kind):
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8], stored[:8, 8:], stored[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    by_rows = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1]]
    by_columns = [np.swapaxes(part, 0, 1) for part in (stored, stored[::-1], stored[::-1, ::-1], stored[:, ::-1])]
    for orientation, expected in enumerate(by_rows + by_columns, start=1):
        content = saved(Image.fromarray(stored), kind, exif=b"Exif\0\0" + exif(orientation))
        assert (np.abs(rgb(content) - expected) > 60).mean() < 0.05  # JPEG blurs colours
        assert look(content).size == expected.shape[1::-1]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_of_every_form_turns_an_image_and_a_damaged_one_does_no_harm():
    hexed = b"\nexif\n      26\n" + exif(6).hex().encode()
    for metadata in (
        chunk(b"eXIf", exif(6)),
        chunk(b"eXIf", exif(6, ">")),
        chunk(b"tEXt", b"Raw profile type exif\0" + hexed),
    ):
        assert rgb(png(bytes(RED) * 128, before=metadata)).shape == (16, 8, 3)
    assert rgb(png(bytes(RED) * 128, after=chunk(b"eXIf", exif(6)))).shape == (16, 8, 3)
    for damaged in (b"hello", exif(6)[:15], exif(9), b"II*\0\x08\0\0\0\xff\xff"):
        assert (rgb(png(bytes(RED) * 128, before=chunk(b"eXIf", damaged))) == RED).all()
        turned = saved(plain(RED), "JPEG")
        turned = turned[:2] + segment(0xE1, b"Exif\0\0" + damaged) + turned[2:]
        assert rgb(turned).shape == (8, 16, 3)


def test_what_a_header_says():
    for kind, lossy in (("PNG", None), ("JPEG", "JPEG"), ("WEBP", None)):
        content = saved(plain(RED), kind)
        assert look(content) == ((16, 8), lossy, True)
        assert look(content + bytes(99)).complete == (kind == "WEBP"), "then decoding tells"
    for options in ({}, {"exif": exif(1)}):
        assert look(saved(plain(RED), "WEBP", lossless=False, **options)).lossy == "lossy WebP"


def test_frames_after_the_first_are_not_read():
    first, second = plain(RED), plain((0, 0, 255))
    for kind in ("PNG", "WEBP"):
        assert (rgb(saved(first, kind, save_all=True, append_images=[second])) == RED).all()
    camera = saved(first, "MPO", save_all=True, append_images=[second])
    assert np.abs(rgb(camera) - RED).max() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_or_changed_anywhere_give_pixels_or_one_line(kind, profiles):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    whole = saved(image, kind, icc_profile=profiles["p3"], exif=b"Exif\0\0" + exif(6))
    expected, rng, cuts = rgb(whole), random.Random(0), 0
    for end in range(0, len(whole), 3):
        found = outcome(whole[:end])
        cuts += isinstance(found, str)
        assert "\n" not in found if isinstance(found, str) else found.shape == expected.shape
    assert cuts > len(whole) // 6
    for _ in range(100):
        content = bytearray(whole)
        for at in rng.choices(range(len(content)), k=rng.randint(1, 4)):
            content[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        found = outcome(bytes(content))
        assert "\n" not in found if isinstance(found, str) else found.shape[2] == 3


def test_photos_of_phones_are_not_taken_for_bombs(monkeypatch):
    assert look(png(b"", size=(16_320, 12_240), data=b"a")).size == (16_320, 12_240)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit, which belongs to whoever uses Pillow
    for kind in ("PNG", "JPEG"):
        assert rgb(saved(plain(RED), kind)).shape == (8, 16, 3)


# --- files ---


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("gone.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "empty.png").touch()
    with open(tmp_path / "huge.png", "wb") as file:
        file.truncate(2**30 + 1)
    for name, reason in {
        "pipe.png": "not a file",
        "link.png": "broken link",
        "loop.png": "broken link",
        "empty.png": "empty file",
        "huge.png": "larger than 1 GiB",
        "n" * 999: "not a file",
        "nul\0": "not a file",
    }.items():
        with pytest.raises(ValueError, match=f"^{reason}$"):
            decode(tmp_path / name)
    with pytest.raises(ValueError, match=r"^not a file$"):
        decode("/dev/zero")
