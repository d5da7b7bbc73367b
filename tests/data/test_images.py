"""Folders of images as sources of pixels: what is read, reported, cached, cropped and held out, and in which order."""

import os
import re
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from mvar.data.images.decoding import decode
from mvar.data.images.folders import ImageFolder
from mvar.data.order import batch_indices, epoch_order, evenly_spaced
from mvar.data.source import PixelSource
from mvar.data.splits import open_splits
from mvar.data.tokens.cache import TokenSource
from mvar.data.workers import in_processes

from .by_hand import png


def save(path, colour=(200, 40, 40), size=(16, 16), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)
    return path


def save_noise(path, size):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


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
    for suffix in ("png", "jpg"):
        path = folder / f"cut.{suffix}"
        save_noise(path, (64, 64))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("I am no image")
    save(folder / "x.gif", 1, mode="P").rename(folder / "picture.gif.png")
    (folder / "broken-link.png").symlink_to(folder / "gone.png")
    for name, size in {"dot": (1, 1), "strip": (4000, 3), "ribbon": (900, 8)}.items():
        save(folder / f"{name}.png", size=size)
    (folder / "bomb.png").write_bytes(png(b"", size=(60000, 60000), data=b"a"))
    for ignored in (folder / ".hidden.png", folder / ".cache" / "a.png", root / ".git" / "a.png", root / ".a.png"):
        save(ignored)
    (folder / "notes.txt").write_text("not an image, and does not look like one")
    return root


def test_a_messy_folder_is_reported_once_and_the_rest_is_used(messy):
    index = ImageFolder.scan(messy)
    assert index.classes == ["cats", "Ящерица и змея"]
    with pytest.warns(UserWarning, match=f"{len(BAD)} of {len(BAD) + 8} images in .* cannot be used") as caught:
        source = PixelSource.read(index, (8, 8))
    (warning,) = caught
    lines = str(warning.message).splitlines()[1:]
    assert len(lines) == len(BAD)
    for name, reason in BAD.items():
        assert any(re.match(rf"  'cats/{re.escape(name)}': .*{re.escape(reason)}", line) for line in lines), name
    assert [os.fspath(path.relative_to(messy)) for path in source.paths] == [
        f"{name}/{file}" for name, files in GOOD.items() for file in files
    ]
    assert source.labels.tolist() == [0] * 5 + [1] * 3
    pixels, labels = source.batch([3, 7])
    assert (labels.tolist(), pixels.dtype) == ([0, 1], torch.uint8)
    assert abs(int(pixels[0, 0].float().mean()) - 3) <= 3  # a JPEG
    assert (pixels[1, 0] == 2).all()
    with pytest.raises(ValueError, match="cannot be used:\n") as refused:
        PixelSource.read(index, (8, 8), on_bad_image="error")
    assert str(refused.value) == str(warning.message)
    (messy / "none").mkdir()
    for i in range(23):
        (messy / "none" / f"{i}.png").touch()
    with pytest.raises(ValueError, match=r"^23 of 23 images .*\n(  .*\n){20}  \.\.\. and 3 more$"):
        PixelSource.read(ImageFolder.scan(messy / "none"), (8, 8))


def test_worker_processes_read_the_same(messy, monkeypatch):
    index, sources, reports = ImageFolder.scan(messy), [], []
    for few in (1000, 0):
        monkeypatch.setattr("mvar.data.source.in_processes", partial(in_processes, processes=2, few=few))
        with pytest.warns(UserWarning, match="cannot be used") as caught:
            sources.append(PixelSource.read(index, (8, 8)))
        reports.append([str(warning.message) for warning in caught])
    threads, processes = sources
    assert reports[0] == reports[1]
    assert (threads.paths, threads.marks) == (processes.paths, processes.marks)
    assert torch.equal(threads.labels, processes.labels)
    assert all(map(np.array_equal, threads.cache, processes.cache))
    assert len(processes.cache) == 8


# --- resize, crop, cache --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "shape"), [((50, 30), (16, 16)), ((30, 50), (16, 24)), ((24, 16), (16, 24))])
def test_batches_are_crops_of_the_lanczos_resize_cached_or_not(tmp_path, monkeypatch, size, shape):
    h, w = shape
    for i in range(3):
        save_noise(tmp_path / f"{i}.png", size)
    index = ImageFolder.scan(tmp_path)
    cached = PixelSource.read(index, shape)
    on_demand = PixelSource.read(index, shape, cache_bytes=1000)
    one_byte_short = PixelSource.read(index, shape, cache_bytes=sum(image.nbytes for image in cached.cache) - 1)
    assert on_demand.cache is one_byte_short.cache is None

    scale = max(round(h * 1.125) / size[1], round(w * 1.125) / size[0])
    target = round(size[0] * scale), round(size[1] * scale)
    resized = [decode(path).resize(target, Image.Resampling.LANCZOS) for path in index.paths]
    W, H = target
    assert min(H - round(h * 1.125), W - round(w * 1.125)) == 0  # it covers, and no more
    low, high = 1e-6, 1 - 1e-6
    others = (0.5, 0.5, 0.5, 0.5)  # of augmentation, which is off
    places = {(low, low): (0, 0), (high, low): (H - h, 0), (low, high): (0, W - w), None: ((H - h) // 2, (W - w) // 2)}
    for noise, (top, left) in places.items():
        monkeypatch.setattr("mvar.data.views.view_noise", lambda *_, noise=noise: torch.tensor([(*noise, *others)] * 3))
        epochs_B = None if noise is None else torch.zeros(3)
        expected = [np.asarray(image)[top : top + h, left : left + w] for image in resized]
        for source in (cached, on_demand, one_byte_short):
            pixels, _ = source.batch(torch.tensor([2, 0, 1]), epochs_B)
            assert pixels.shape == (3, 3, h, w)
            np.testing.assert_array_equal(pixels.permute(0, 2, 3, 1), np.stack([expected[i] for i in (2, 0, 1)]))


def test_small_images_are_enlarged_with_one_warning(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", size=(40, 12 + 10 * i))
    said = "1 of 3 images in .* are smaller than 16x16 pixels; they are enlarged"
    with pytest.warns(UserWarning, match=said) as caught:
        source = PixelSource.read(ImageFolder.scan(tmp_path), (16, 16))
    assert len(caught) == 1
    assert source.batch([0, 1, 2])[0].shape == (3, 3, 16, 16)


def test_a_file_that_breaks_later_is_named(tmp_path):
    source = PixelSource.read(ImageFolder.scan(save(tmp_path / "a.png").parent), (8, 8), cache_bytes=0)
    (tmp_path / "a.png").write_text("overwritten")
    with pytest.raises(ValueError, match=r"a\.png' was readable before and is not now: not a PNG"):
        source.batch([0])


# --- held-out images ------------------------------------------------------------------------------------------------


def names(source):
    return [f"{path.parent.name}/{path.name}" for path in source.paths]


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
    every = sorted(f"{name}/{i}.png" for name in counts for i in range(counts[name]))
    assert sorted(names(train) + names(val)) == every
    assert val.classes == train.classes == ["few", "many", "single"]
    with pytest.warns(UserWarning, match="1 class without validation images"):
        again = open_splits(tmp_path / "second", (8, 8))
    assert [names(part) for part in again] == [names(train), names(val)]
    # Neither the natural order's start nor its end.
    assert names(val)[1:] not in ([f"many/{i}.png" for i in range(5)], [f"many/{i}.png" for i in range(95, 100)])


def test_at_most_so_many_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr("mvar.data.splits.MOST_VALIDATION", 4)
    for i in range(100):
        save(tmp_path / "one class" / f"{i}.png", size=(8, 8))
    for i in range(12):
        save(tmp_path / "six classes" / str(i // 2) / f"{i}.png", size=(8, 8))
    assert [len(part) for part in open_splits(tmp_path / "one class", (8, 8))] == [96, 4]
    with pytest.warns(UserWarning, match="2 classes without validation images"):
        assert [len(part) for part in open_splits(tmp_path / "six classes", (8, 8))] == [8, 4]


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
    assert epoch_order(10, 0, 0).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]


def test_a_part_of_a_set_is_evenly_spaced(tmp_path):
    assert evenly_spaced(10, 5) == [0, 2, 4, 6, 8]
    assert evenly_spaced(10, 4) == [0, 2, 5, 7]
    assert evenly_spaced(3, 7) == [0, 1, 2]
    assert evenly_spaced(0, 5) == []
    for i in range(5):
        save(tmp_path / "abcde"[i] / f"{i}.png", (i, i, i))
    pixels = PixelSource.read(ImageFolder.scan(tmp_path), (8, 8))
    file_names = [f"{i}.png" for i in range(5)]
    tokens = TokenSource(
        shards=[torch.arange(10).view(5, 2, 1).numpy()], labels=pixels.labels, classes=pixels.classes, names=file_names
    )
    for most, expected in {2: [0, 2], 5: [0, 1, 2, 3, 4], 9: [0, 1, 2, 3, 4]}.items():
        for source in (pixels.at_most(most), tokens.at_most(most)):
            assert source.labels.tolist() == expected
            assert [os.path.basename(source.name(i)) for i in range(len(source))] == [f"{i}.png" for i in expected]
        assert pixels.at_most(most).batch(range(len(expected)))[0][:, 0, 0, 0].tolist() == expected
        assert tokens.at_most(most).batch(range(len(expected)))[0].flatten().tolist() == [2 * i for i in expected]
