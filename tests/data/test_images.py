import os
import re
import struct
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mvar.data.images.decoding import decode
from mvar.data.images.folders import ImageFolder
from mvar.data.order import batch_indices, epoch_order
from mvar.data.source import PixelSource
from mvar.data.splits import open_splits
from mvar.data.views import view_noise
from mvar.data.workers import in_processes


def save(path, colour=(200, 40, 40), size=(16, 16), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def rgb(path):
    return np.asarray(decode(path)).astype(int)


def huge_png(width, height):
    """A valid header that claims more pixels than the file could ever hold."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# --- decode ---------------------------------------------------------------------------------------------------------


def test_grey_palette_cmyk_and_webp_become_rgb(tmp_path):
    assert (rgb(save(tmp_path / "grey.png", 77, mode="L")) == 77).all()
    assert (rgb(save(tmp_path / "bit.png", 1, mode="1")) == 255).all()
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(tmp_path / "palette.png")
    assert (rgb(tmp_path / "palette.png") == (10, 200, 30)).all()
    assert np.abs(rgb(save(tmp_path / "a.jpg", (0, 255, 255, 0), mode="CMYK", quality=95)) - (255, 0, 0)).max() < 8
    assert (rgb(save(tmp_path / "b.webp", (1, 2, 3), lossless=True)) == (1, 2, 3)).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert (rgb(tmp_path / "deep.png")[..., 1] == np.round(values / 257)).all()


def test_transparency_is_laid_on_white(tmp_path):
    assert (rgb(save(tmp_path / "clear.png", (10, 20, 30, 0), mode="RGBA")) == 255).all()
    half = rgb(save(tmp_path / "half.webp", (0, 0, 0, 128), mode="RGBA", lossless=True))
    assert np.abs(half - 127).max() <= 1
    assert np.abs(rgb(save(tmp_path / "grey.png", (0, 51), mode="LA")) - 204).max() <= 1
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.putpixel((3, 5), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    got = rgb(tmp_path / "palette.png")
    assert tuple(got[5, 3]) == (10, 200, 30)
    assert (np.delete(got.reshape(-1, 3), 5 * 16 + 3, 0) == 255).all()
    assert (rgb(save(tmp_path / "key.png", (9, 9, 9), transparency=(9, 9, 9))) == 255).all()


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (24, 16), "black")
    image.paste("white", (0, 0, 8, 16))  # white on the left; turned by 90 degrees clockwise it lies on top
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    got = rgb(tmp_path / "turned.jpg")
    assert got.shape == (24, 16, 3)
    assert got[:6].min() > 200
    assert got[10:].max() < 50


def test_the_content_counts_not_the_suffix(tmp_path):
    save(tmp_path / "a.jpg", (50, 100, 150), quality=95).rename(tmp_path / "really-a-jpeg.png")
    assert np.abs(rgb(tmp_path / "really-a-jpeg.png") - (50, 100, 150)).max() < 8


# --- a messy folder -------------------------------------------------------------------------------------------------

BAD = {
    "empty.png": "empty file",
    "text.png": "not a PNG, JPEG or WebP file",
    "picture.gif.png": "not a PNG, JPEG or WebP file",
    "cut.png": "truncated",
    "cut.jpg": "truncated",
    "broken-link.png": "broken link",
    "dot.png": "1x1 pixels, a side must have at least 8",
    "strip.png": "4000x3 pixels, a side must have at least 8",
    "ribbon.png": "900x8 pixels, one side more than 100 times the other",
    "bomb.png": "60000x60000 pixels, more than 250 million in all",
}
GOOD = {
    "cats": ["a (2).PNG", "a (10).png", "deeper/nested.png", "Ünïcode.JPEG", "ありがとう.webp"],
    "Ящерица и змея": ["1.png", "2.png", "10.png"],
}


@pytest.fixture
def messy(tmp_path):
    root = tmp_path / "messy"
    for name, files in GOOD.items():
        for number, file in enumerate(files):
            save(root / name / file, (number, 0, 0), size=(20 + number, 16))
    folder = root / "cats"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("png", "jpg"):
        noise.save(folder / f"cut.{suffix}")
        content = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("I am no image")
    save(folder / "x.gif", 1, mode="P").rename(folder / "picture.gif.png")
    (folder / "broken-link.png").symlink_to(folder / "gone.png")
    save(folder / "dot.png", size=(1, 1))
    save(folder / "strip.png", size=(4000, 3))
    save(folder / "ribbon.png", size=(900, 8))
    (folder / "bomb.png").write_bytes(huge_png(60000, 60000))
    for ignored in (folder / ".hidden.png", folder / ".cache" / "a.png", root / ".git" / "a.png", root / ".a.png"):
        save(ignored)
    (folder / "notes.txt").write_text("not an image, and does not look like one")
    (root / "README.md").touch()
    return root


def test_a_messy_folder_is_reported_once_and_the_rest_is_used(messy):
    index = ImageFolder.scan(messy)
    assert index.classes == ["cats", "Ящерица и змея"]
    with pytest.warns(UserWarning, match=f"{len(BAD)} of {len(BAD) + 8} images in .* cannot be used") as caught:
        source = PixelSource.read(index, (8, 8))
    assert len(caught) == 1
    lines = str(caught[0].message).splitlines()[1:]
    assert len(lines) == len(BAD)
    for name, reason in BAD.items():
        assert any(re.match(rf"  'cats/{re.escape(name)}': .*{re.escape(reason)}", line) for line in lines), (
            name,
            lines,
        )
    assert [os.fspath(path.relative_to(messy)) for path in source.paths] == [
        f"{name}/{file}" for name, files in GOOD.items() for file in files
    ]
    assert source.labels.tolist() == [0] * 5 + [1] * 3
    pixels, labels = source.batch([3, 7])
    assert labels.tolist() == [0, 1]
    assert pixels.dtype == torch.uint8
    assert abs(int(pixels[0, 0].float().mean()) - 3) <= 3  # a JPEG
    assert (pixels[1, 0] == 2).all()


def test_worker_processes_read_the_same(messy, monkeypatch):
    index, sources, reports = ImageFolder.scan(messy), [], []
    for few in (1000, 0):
        monkeypatch.setattr("mvar.data.source.in_processes", partial(in_processes, processes=2, few=few))
        with pytest.warns(UserWarning, match="cannot be used") as caught:
            sources.append(PixelSource.read(index, (8, 8)))
        reports.append([str(warning.message) for warning in caught])
    threads, processes = sources
    assert reports[0] == reports[1]
    assert (threads.paths, threads.marks, threads.bad) == (processes.paths, processes.marks, processes.bad)
    assert torch.equal(threads.labels, processes.labels)
    assert all(map(np.array_equal, threads.cache, processes.cache))
    assert len(processes.cache) == 8


def test_on_bad_image_error_raises_the_same_report(messy):
    with pytest.raises(ValueError, match=r"cannot be used:\n") as caught:
        PixelSource.read(ImageFolder.scan(messy), (8, 8), on_bad_image="error")
    assert all(name in str(caught.value) for name in BAD)


def test_a_long_report_is_cut_and_no_readable_image_is_an_error(tmp_path):
    for i in range(23):
        (tmp_path / f"{i}.png").touch()
    with pytest.raises(ValueError, match=r"^23 of 23 images .*\n(  .*\n){20}  \.\.\. and 3 more$"):
        PixelSource.read(ImageFolder.scan(tmp_path), (8, 8))


def test_flat_and_one_class_folders_have_no_classes(tmp_path):
    for folder in ("flat", "one/only class"):
        save(tmp_path / folder / "b.png")
        save(tmp_path / folder / "a.png")
    for folder in ("flat", "one"):
        index = ImageFolder.scan(tmp_path / folder)
        assert (index.classes, index.labels) == ([], [0, 0])
        assert [path.name for path in index.paths] == ["a.png", "b.png"]


def test_unusable_folders_are_named_in_one_line(tmp_path):
    (tmp_path / "empty" / "class").mkdir(parents=True)
    save(tmp_path / "mixed" / "a.png")
    save(tmp_path / "mixed" / "class" / "a.png")
    for name, problem in {
        "missing": "does not exist; give a folder",
        "empty": "holds no images; put .png .jpg .jpeg .jpe .jfif .webp files",
        "mixed": "holds 1 image beside 1 class folder; move them",
        "mixed/a.png": "is a file; give a folder",
    }.items():
        with pytest.raises(ValueError, match=f"^data = '.*{name}': {problem}") as caught:
            open_splits(tmp_path / name, (8, 8))
        assert "\n" not in str(caught.value)


def test_the_order_does_not_depend_on_how_the_disk_writes_accents(tmp_path):
    for copy, name in (("composed", "\u00e9"), ("decomposed", "e\u0301")):
        for folder in (name, "z", "B", "a"):
            save(tmp_path / copy / folder / "1.png")
        assert ImageFolder.scan(tmp_path / copy).classes == ["a", "B", "z", "\u00e9"]


def test_a_class_folder_without_images_is_no_class(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name / "1.png")
    (tmp_path / "c").mkdir()
    with pytest.warns(UserWarning, match="folders without images are no classes: c"):
        assert ImageFolder.scan(tmp_path).classes == ["a", "b"]


@pytest.mark.parametrize("others", [["dog"], []])
def test_a_folder_that_may_be_either_of_two_classes_is_refused(tmp_path, others):
    for name in ("CAT", *others):
        save(tmp_path / name / "1.png")
    with pytest.raises(
        ValueError,
        match=r"^data = '[^\n]*': the class CAT may be cat or Cat of the training images; rename the folder$",
    ):
        ImageFolder.scan(tmp_path, classes=["cat", "Cat", "dog"])
    (tmp_path / "CAT").rename(tmp_path / "Cat")
    assert ImageFolder.scan(tmp_path, classes=["cat", "Cat", "dog"]).labels == [1, *[2 for _ in others]]


# --- resize, crop, cache --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "shape"), [((50, 30), (16, 16)), ((30, 50), (16, 24)), ((24, 16), (16, 24))])
def test_batches_are_crops_of_the_lanczos_resize_cached_or_not(tmp_path, monkeypatch, size, shape):
    h, w = shape
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    index = ImageFolder.scan(tmp_path)
    cached = PixelSource.read(index, shape)
    on_demand = PixelSource.read(index, shape, cache_bytes=1000)
    one_byte_short = PixelSource.read(index, shape, cache_bytes=sum(image.nbytes for image in cached.cache) - 1)
    assert on_demand.cache is one_byte_short.cache is None

    scale = max(round(h * 1.125) / size[1], round(w * 1.125) / size[0])
    resized = [
        decode(path).resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.LANCZOS)
        for path in index.paths
    ]
    H, W = resized[0].height, resized[0].width
    assert min(H - round(h * 1.125), W - round(w * 1.125)) == 0  # it covers, and no more
    low, high = 1e-6, 1 - 1e-6
    others = (0.5, 0.5, 0.5, 0.5)  # of augmentation, which nobody asked for
    places = {(low, low): (0, 0), (high, low): (H - h, 0), (low, high): (0, W - w), None: ((H - h) // 2, (W - w) // 2)}
    for noise, (top, left) in places.items():
        monkeypatch.setattr("mvar.data.views.view_noise", lambda *_, noise=noise: torch.tensor([(*noise, *others)] * 3))
        epochs_B = None if noise is None else torch.zeros(3)
        expected = [np.asarray(image)[top : top + h, left : left + w] for image in resized]
        for source in (cached, on_demand, one_byte_short):
            pixels, _ = source.batch(torch.tensor([2, 0, 1]), epochs_B)
            assert pixels.shape == (3, 3, h, w)
            np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1), np.stack([expected[i] for i in (2, 0, 1)]))


def test_the_crop_is_that_of_seed_epoch_and_image(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    index = ImageFolder.scan(tmp_path)

    def pixels(seed, epoch, resize_factor=4.0):
        source = PixelSource.read(index, (8, 8), resize_factor=resize_factor, seed=seed)
        return source.batch([0], None if epoch is None else torch.tensor([epoch]))[0]

    v, u = view_noise(3, torch.tensor([5]), torch.tensor([0]))[0, :2].tolist()
    image = np.asarray(decode(tmp_path / "0.png").resize((32, 32), Image.Resampling.LANCZOS))
    top, left = int(v * 25), int(u * 25)
    expected = image[top : top + 8, left : left + 8]
    np.testing.assert_array_equal(pixels(3, 5)[0].permute(1, 2, 0), expected)
    assert not torch.equal(pixels(3, 5), pixels(3, 6))
    assert not torch.equal(pixels(3, 5), pixels(4, 5))
    assert torch.equal(pixels(3, 5, 1.0), pixels(3, None, 1.0))


def test_small_images_are_enlarged_with_one_warning(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", size=(40, 12 + 10 * i))
    with pytest.warns(
        UserWarning, match="1 of 3 images in .* are smaller than 16x16 pixels; they are enlarged"
    ) as caught:
        source = PixelSource.read(ImageFolder.scan(tmp_path), (16, 16))
    assert len(caught) == 1
    assert source.batch([0, 1, 2])[0].shape == (3, 3, 16, 16)


def test_a_file_that_breaks_later_is_named(tmp_path):
    source = PixelSource.read(ImageFolder.scan(save(tmp_path / "a.png").parent), (8, 8), cache_bytes=0)
    (tmp_path / "a.png").write_text("overwritten")
    with pytest.raises(ValueError, match=r"a\.png' was readable before and is not now: not a PNG"):
        source.batch([0])


# --- splits ---------------------------------------------------------------------------------------------------------


def names(source):
    return [f"{path.parent.name}/{path.name}" for path in source.paths]


@pytest.mark.parametrize("validation", ["val", "test"])
def test_train_and_val_folders_are_used(tmp_path, validation):
    for i, part in enumerate(("train", validation)):
        for name in ("a", "b"):
            for number in range(3 - i):
                save(tmp_path / part / name / f"{number}.png", (i, 0, 0))
    train, val = open_splits(tmp_path, (8, 8))
    assert names(train) == ["a/0.png", "a/1.png", "a/2.png", "b/0.png", "b/1.png", "b/2.png"]
    assert names(val) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert train.classes == val.classes == ["a", "b"]
    assert val.labels.tolist() == [0, 0, 1, 1]
    assert (train.batch(range(6))[0][:, 0] == 0).all()
    assert (val.batch(range(4))[0][:, 0] == 1).all()


def test_without_val_a_share_of_every_class_is_held_out_by_name(tmp_path):
    counts = {"many": 100, "few": 3, "single": 1}
    for copy in ("first", "second/train"):  # a lone train/ folder is looked into
        for name, count in counts.items():
            for i in range(count):
                save(tmp_path / copy / name / f"{i}.png")
    with pytest.warns(UserWarning, match=r"first': 1 class without validation images, trained all the same: single$"):
        train, val = open_splits(tmp_path / "first", (8, 8))
    held = [name.split("/")[0] for name in names(val)]
    assert {name: held.count(name) for name in counts} == {"many": 5, "few": 1, "single": 0}
    assert sorted(names(train) + names(val)) == sorted(
        f"{name}/{i}.png" for name in counts for i in range(counts[name])
    )
    assert val.classes == train.classes == ["few", "many", "single"]
    with pytest.warns(UserWarning, match="1 class without validation images"):
        again = open_splits(tmp_path / "second", (8, 8))
    assert [names(part) for part in again] == [names(train), names(val)]
    # Neither the natural order's start nor its end.
    assert names(val)[1:] not in ([f"many/{i}.png" for i in range(5)], [f"many/{i}.png" for i in range(95, 100)])


def test_at_most_so_many_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr("mvar.data.splits.MOST_VALIDATION", 4)
    for i in range(200):
        save(tmp_path / "one class" / f"{i}.png", size=(8, 8))
    for i in range(12):
        save(tmp_path / "six classes" / str(i // 2) / f"{i}.png", size=(8, 8))
    train, val = open_splits(tmp_path / "one class", (8, 8))
    assert (len(train), len(val)) == (196, 4)
    with pytest.warns(UserWarning, match="2 classes without validation images"):
        train, val = open_splits(tmp_path / "six classes", (8, 8))
    assert (len(train), len(val)) == (8, 4)


def test_too_few_images_for_a_split(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="leaves no validation images out of 1 readable image; add images"):
        open_splits(tmp_path, (8, 8))


# --- order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "batch_size"), [(10, 4), (3, 8), (12, 4), (1, 1)])
def test_steps_walk_the_epochs_whatever_the_batch_size(n, batch_size):
    walk = np.concatenate([epoch_order(n, 5, epoch) for epoch in range(12)])
    steps = [batch_indices(n, batch_size, 5, step) for step in range(len(walk) // batch_size)]
    indices, epochs = (torch.cat(parts).numpy() for parts in zip(*steps, strict=True))
    np.testing.assert_array_equal(indices, walk[: len(indices)])
    np.testing.assert_array_equal(epochs, np.repeat(np.arange(12), n)[: len(epochs)])


def test_orders_are_permutations_that_differ_by_seed_and_epoch():
    orders = [epoch_order(1000, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all((np.sort(order) == np.arange(1000)).all() for order in orders)
    assert len({order.tobytes() for order in orders}) == 3
    epoch_order.cache_clear()
    np.testing.assert_array_equal(epoch_order(1000, 0, 1), orders[1])


def test_a_view_depends_on_seed_epoch_and_image_only():
    epochs, indices = torch.tensor([0, 0, 1, 1]), torch.tensor([3, 4, 3, 4])
    noise = view_noise(7, epochs, indices)
    assert noise.shape == (4, 6)
    assert len(set(map(tuple, noise.tolist()))) == 4
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(view_noise(7, epochs[order], indices[order]), noise[order])
    assert torch.equal(view_noise(7, epochs[2:3], indices[2:3]), noise[2:3])
    assert not torch.equal(view_noise(8, epochs, indices), noise)
