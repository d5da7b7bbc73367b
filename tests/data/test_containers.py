"""Metadata and damage of every kind: pixels, or one line that says why not, at once."""

import random
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from mvar.data.images.containers import PNG_START, take_apart
from mvar.data.images.decoding import decode

from .by_hand import KINDS, RED, chunk, exif, outcome, plain, png, rgb, riff, saved, segment

# --- metadata ---

HEXED = b"\nexif\n      26\n" + exif(6).hex().encode()
ORIENTED = {  # what gives orientation 6
    "eXIf": chunk(b"eXIf", exif(6)),
    "big endian": chunk(b"eXIf", exif(6, ">")),
    "with a prefix": chunk(b"eXIf", b"Exif\0\0" + exif(6)),
    "a long": chunk(b"eXIf", exif(6, kind=4)),
    "a byte": chunk(b"eXIf", exif(6, kind=1)),
    "raw": chunk(b"tEXt", b"Raw profile type exif\0" + HEXED),
    "raw, compressed": chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(HEXED)),
}
UPRIGHT = {  # what does not
    "no TIFF": chunk(b"eXIf", b"hello"),
    "cut off": chunk(b"eXIf", exif(6)[:15]),
    "endless": chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff"),
    "9": chunk(b"eXIf", exif(9)),
    "a text": chunk(b"eXIf", exif(b"6", kind=2)),
    "a rational": chunk(b"eXIf", exif(0, kind=5)),
    "wrong checksum": chunk(b"eXIf", exif(6), crc=1),
    "raw profile, not compressed": chunk(b"zTXt", b"Raw profile type exif\0\0\nexif\n"),
    "much text": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_100_000))),
    "empty chunks": b"".join(chunk(kind, b"") for kind in (b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"acTL", b"fcTL")),
    "chunks that nobody knows": chunk(b"vpAg", b"a", crc=1) + chunk(b"\xff\xfe\0a", b"b"),
}


@pytest.mark.parametrize("name", [*ORIENTED, *UPRIGHT])
def test_metadata_of_a_png_turns_it_or_does_no_harm(name):
    metadata = (ORIENTED | UPRIGHT)[name]
    for where in ("before", "after"):
        got = rgb(png(bytes(RED) * 128, **{where: metadata}))
        assert got.shape == ((16, 8, 3) if name in ORIENTED else (8, 16, 3))
        assert (got == RED).all()


BAD_SEGMENTS = {
    "no TIFF": segment(0xE1, b"Exif\0\0hello"),
    "a negative rational": segment(0xE1, b"Exif\0\0" + exif(1)[:-4] + struct.pack("<HHIii", 282, 10, 1, 0, -1)),
    "short EXIF": segment(0xE1, b"Exif\0"),
    "short JFIF": segment(0xE0, b"JFIF\0\1"),
    "short Adobe": segment(0xEE, b"Adobe"),
    "MPF without MPF": segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    "length 0": b"\xff\xe5\0\0",
    "filling": b"\xff" * 99,
}


@pytest.mark.parametrize("name", BAD_SEGMENTS)
def test_metadata_of_a_jpeg_does_no_harm(name):
    image = saved(plain(RED), "JPEG")
    got = rgb(image[:2] + BAD_SEGMENTS[name] + image[2:])
    np.testing.assert_array_equal(got, rgb(image))
    turned = rgb(image[:2] + BAD_SEGMENTS[name] + segment(0xE1, b"Exif\0\0" + exif(6)) + image[2:])
    assert turned.shape == ((8, 16, 3) if name == "no TIFF" or name == "a negative rational" else (16, 8, 3))


def test_metadata_of_a_webp_does_no_harm(profiles):
    whole = saved(plain(RED), "WEBP", exif=exif(6), icc_profile=profiles["srgb"], xmp=b"abc")
    chunks, at = [], 12
    while at < len(whole):
        length = struct.unpack_from("<I", whole, at + 4)[0]
        chunks.append((whole[at : at + 4], whole[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    assert [kind for kind, _ in chunks] == [b"VP8X", b"ICCP", b"VP8L", b"EXIF", b"XMP "]
    assert rgb(whole).shape == (16, 8, 3)
    for changed in ({b"EXIF": b"hello"}, {b"EXIF": b""}, {b"ICCP": b"hello", b"EXIF": b"Exif\0\0"}):
        got = rgb(riff(*(dict(chunks) | changed).items()))
        assert got.shape == (8, 16, 3)
        assert (got == RED).all()
    pixels_only = riff(*(part for part in chunks if part[0] in (b"VP8X", b"VP8L")))  # its flags promise more
    assert (rgb(pixels_only) == RED).all()
    assert (rgb(whole[: whole.index(b"XMP ") + 9]) == RED).all()
    with pytest.raises(ValueError, match="truncated"):  # nobody knows which side is up
        rgb(whole[: whole.index(b"EXIF") + 9])
    assert rgb(whole[:4] + b"\xff" * 4 + whole[8:]).shape == (16, 8, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_orientation(kind):
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8], stored[:8, 8:], stored[8:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    by_rows = [stored, stored[:, ::-1], stored[::-1, ::-1], stored[::-1]]
    by_columns = [np.swapaxes(part, 0, 1) for part in (stored, stored[::-1], stored[::-1, ::-1], stored[:, ::-1])]
    for orientation, expected in enumerate(by_rows + by_columns, start=1):
        content = saved(Image.fromarray(stored), kind, exif=b"Exif\0\0" + exif(orientation))
        assert (np.abs(rgb(content) - expected) > 60).mean() < 0.05  # JPEG blurs colours
        assert take_apart(content).upright_size == expected.shape[1::-1]


# --- damage ---


def test_frames_after_the_first_are_not_read():
    first, second = plain(RED), plain((0, 0, 255))
    for kind in ("PNG", "WEBP"):
        animated = saved(first, kind, save_all=True, append_images=[second])
        assert (rgb(animated) == RED).all()
        assert (rgb(animated[:-20]) == RED).all()
    camera = saved(first, "MPO", save_all=True, append_images=[second])
    with Image.open(BytesIO(camera)) as image:
        assert image.format == "MPO"
    assert np.abs(rgb(camera) - RED).max() <= 2


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_or_changed_anywhere_give_pixels_or_one_line(kind, profiles):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    whole = saved(image, kind, icc_profile=profiles["p3"], exif=b"Exif\0\0" + exif(6))
    expected, rng, cuts = rgb(whole), random.Random(0), 0
    for end in range(len(whole)):
        found = outcome(whole[:end])
        if isinstance(found, str):
            assert found in ("truncated", "empty file", "not a PNG, JPEG or WebP file")
            cuts += 1
        else:
            np.testing.assert_array_equal(found, expected)
    assert cuts > len(whole) // 2
    for _ in range(200):
        content = bytearray(whole)
        for at in rng.choices(range(len(content)), k=rng.randint(1, 4)):
            content[at : at + rng.randint(0, 2)] = rng.randbytes(rng.randint(0, 2))
        found = outcome(bytes(content))
        assert "\n" not in found if isinstance(found, str) else found.shape[2] == 3


GOOD = png(bytes(RED) * 128, parts=3)
PIXELS = GOOD.index(b"IDAT") - 4
NEXT = GOOD.index(b"IDAT", PIXELS + 8) - 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (GOOD[:PIXELS] + chunk(b"IDAT", b"") * 3 + GOOD[PIXELS:], None),
        (GOOD[:NEXT] + chunk(b"tEXt", b"a\0b") + GOOD[NEXT:], None),
        (GOOD[:-12], None),
        (GOOD + b"more", None),
        (GOOD[:PIXELS] + struct.pack(">I", 2**32 - 1) + b"tEXt" + GOOD[PIXELS:], "truncated"),
        (GOOD[:PIXELS] + chunk(b"IEND", b""), "holds no pixels"),
        (PNG_START + GOOD[PIXELS:], "holds no pixels"),
        (GOOD[:PIXELS] + chunk(b"IDAT", b"no zlib") + chunk(b"IEND", b""), "broken data stream"),
        (GOOD[: PIXELS + 9] + b"?" + GOOD[PIXELS + 10 :], r"damaged \(checksum of IDAT\)"),
        (png(bytes(128), bits=3, colour=0), "no PNG has 3 bits and colour type 0"),
        (png(bytes(128), colour=3, before=chunk(b"PLTE", b"ab")), "has no palette"),
        (png(b"", size=(2**32 - 1, 2**32 - 1), data=b"a"), "more than 250 million in all"),
        (riff((b"VP8X", bytes(4) + b"\xff" * 6), (b"VP8L", b"/")), "16777216x16777216 pixels, more than 250 million"),
        (riff((b"VP8L", b"")), "1x1 pixels"),
        (riff((b"VP8X", b"\2" + bytes(3) + b"\x10\0\0" * 2), (b"ANMF", b"")), "could not create decoder object"),
        (b"\xff\xd8\xff" + b"\xff" * 1_000_000 + b"\0", "truncated"),
    ],
)
def test_hostile_files(content, reason):
    if reason is None:
        assert (rgb(content) == RED).all()
    else:
        with pytest.raises(ValueError, match=reason) as caught:
            decode(BytesIO(content))
        assert "\n" not in str(caught.value)


def test_a_file_of_nothing_but_tiny_parts_ends_soon(monkeypatch):
    monkeypatch.setattr("mvar.data.images.containers.MOST_PARTS", 50)
    webp, jpeg = saved(plain(RED), "WEBP"), saved(plain(RED), "JPEG")
    many = {
        "PNG": GOOD[:PIXELS] + chunk(b"teXt", b"") * 50 + GOOD[PIXELS:],
        "JPEG": jpeg[:2] + segment(0xFE, b"") * 50 + jpeg[2:],
        "WEBP": riff(*[(b"more", b"")] * 50, (b"VP8L", webp[20:])),
    }
    assert {kind: outcome(content) for kind, content in many.items()} == dict.fromkeys(KINDS, "truncated")


def test_photos_of_phones_are_not_taken_for_bombs(monkeypatch):
    assert take_apart(png(b"", size=(12_000, 9_000), data=b"a")).size == (12_000, 9_000)
    assert take_apart(png(b"", size=(16_320, 12_240), data=b"a")).size == (16_320, 12_240)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit, which belongs to whoever uses Pillow
    for kind in ("PNG", "JPEG"):
        assert rgb(saved(plain(RED), kind)).shape == (8, 16, 3)


def test_two_sizes_in_one_jpeg_do_not_pass_the_limit():
    image = saved(plain(RED), "JPEG")
    frame = bytearray(image[image.index(b"\xff\xc0") :][:19])
    frame[1], frame[5:9] = 0xDE, b"\xff" * 4  # a hierarchical frame, which Pillow takes for one
    at = image.index(b"\xff\xda")
    with pytest.raises(ValueError, match="damaged"):
        decode(BytesIO(image[:at] + frame + image[at:]))
