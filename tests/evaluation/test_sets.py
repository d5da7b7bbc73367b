"""Folders and archives of images as `mvar evaluate` opens them: what is read, and what is refused before any work."""

import io
import os
import re
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mvar.cli import main
from mvar.evaluation.pairs import aligned, check_pair
from mvar.evaluation.sets import ImageSet, Statistics, open_set


def noise(count, height=12, width=10, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def fill(folder, pixels, names=None, **options):
    """Write images into a folder, lossless, and return its path."""
    for i, image in enumerate(pixels):
        path = folder / (names[i] if names else f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, **options)
    return str(folder)


def flipped(content, at, bits=1):
    """A file's content with some bits of one byte turned."""
    damaged = bytearray(content)
    damaged[at] ^= bits
    return bytes(damaged)


def archive(path, compressed=False, **arrays):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return str(path)


def opened(path, allow_jpeg=False):
    return open_set(path, "samples", allow_jpeg=allow_jpeg)


def all_pixels(images, size=4):
    """In batches, as numpy's images are."""
    parts = [images.batch(range(i, min(i + size, images.count))) for i in range(0, images.count, size)]
    assert all(part.dtype == torch.uint8 for part in parts)
    return torch.cat(parts).permute(0, 2, 3, 1).numpy()


# --- folders ---


def test_a_flat_folder_is_read_in_natural_order(tmp_path):
    pixels = noise(12)
    images = opened(fill(tmp_path / "flat", pixels))
    assert (images.name, images.count, images.shape) == ("flat", 12, (12, 10))
    assert (images.classes, images.labels_N, images.notes, images.statistics) == ([], None, [], None)  # names are none
    np.testing.assert_array_equal(all_pixels(images), pixels)
    np.testing.assert_array_equal(images.batch(range(9, 0, -4)).permute(0, 2, 3, 1), pixels[9:0:-4])


def test_class_folders_give_labels_and_webp_is_taken(tmp_path):
    pixels = noise(5)
    names = ["a2/x.png", "a2/y.webp", "a10/x.png", "a10/sub/y.png", "b/z.png"]
    images = opened(fill(tmp_path, pixels, names, lossless=True))
    assert images.classes == ["a2", "a10", "b"]
    assert images.ordered
    assert images.labels_N.tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_array_equal(all_pixels(images), pixels[[0, 1, 3, 2, 4]])


def test_the_tools_own_samples_have_classes(bundle, tmp_path):
    out, npz = str(tmp_path / "drawn"), str(tmp_path / "drawn.npz")
    draw = ["sample", "--model", bundle, "--per-class", "2", "--out-dir", out, "--npz", npz, "--labels"]
    main([*draw, "dog,cat"])
    for images in (opened(out), opened(npz)):
        assert (images.count, images.shape, images.classes, images.ordered) == (4, (8, 8), ["cat", "dog"], True)
        assert images.drawn_with["model"] == bundle
        assert "images" not in images.drawn_with
    assert opened(out).labels_N.tolist() == [0, 0, 1, 1]
    with np.load(npz) as arrays:
        assert opened(npz).labels_N.tolist() == [1 - i // 2 for i in arrays["index"]]
    main([*draw, "dog,-1,dog"])
    for images in (opened(out), opened(npz)):
        assert (images.classes, images.ordered) == (["dog", "no class"], False)
        assert images.labels_N.bincount().tolist() == [4, 2]
    main([*draw, "dog"])  # its label, 1, is no sign of a second class
    assert [opened(path).classes for path in (out, npz)] == [[], []]


def test_an_archive_with_the_report_of_others_is_refused(bundle, tmp_path):
    npz = tmp_path / "a.npz"
    main(["sample", "--model", bundle, "--per-class", "3", "--npz", str(npz)])
    with np.load(npz) as arrays:
        whole = dict(arrays)
    opened(archive(npz, **whole))
    for other in (
        {name: array for name, array in whole.items() if name != "index"},
        {name: array[:5] for name, array in whole.items()},
        whole | {"arr_1": whole["arr_1"][::-1].copy()},
        whole | {"index": whole["index"] * 0},
    ):
        with pytest.raises(ValueError, match=r"holds other images than its a\.samples\.json lists; draw them again"):
            opened(archive(npz, **other))


def test_samples_of_a_protocol_have_the_models_classes(bundle, tmp_path):
    out, npz = str(tmp_path / "drawn"), str(tmp_path / "drawn.npz")
    model = shutil.copytree(bundle, tmp_path / "model")
    (model / "classes.json").write_text('["crane", "crane"]')  # as two classes of ImageNet are named
    main(f"sample-set --model {model} --per-class 2 --out-dir {out} --npz {npz}".split())
    for images in (opened(out), opened(npz)):
        assert (images.count, images.classes, images.ordered) == (4, ["crane", "crane"], True)
    assert opened(out).labels_N.tolist() == [0, 0, 1, 1]
    with np.load(npz) as arrays:
        index = arrays["index"]
    assert opened(npz).labels_N.tolist() == (index // 2).tolist()
    np.testing.assert_array_equal(all_pixels(opened(out))[index], all_pixels(opened(npz)))


def test_the_fingerprint_follows_every_image(tmp_path):
    pixels = noise(4)
    changed = pixels.copy()
    changed[2, 0, 0, 0] ^= 1  # one bit of one pixel, and with compress_level 0 the file as long as before
    paths = [fill(tmp_path / str(i), x, compress_level=0) for i, x in enumerate((pixels, pixels, changed))]
    marks = [opened(path).sha256 for path in paths]
    assert marks[0] == marks[1] != marks[2]
    (tmp_path / "1" / "3.png").rename(tmp_path / "1" / "4.png")
    marks[1] = opened(paths[1]).sha256
    marks += [opened(archive(tmp_path / f"{i}.npz", arr_0=p)).sha256 for i, p in enumerate((pixels, changed))]
    assert len(set(marks)) == 5


def test_jpegs_are_for_references_only(tmp_path):
    fill(tmp_path, noise(1))
    fill(tmp_path, noise(2), ["p.jpg", "q.png"], format="JPEG")  # the content counts, not the name
    found = opened(str(tmp_path), allow_jpeg=True)
    assert (found.count, len(found.notes)) == (3, 1)
    assert found.notes[0].startswith("2 of 3 images are JPEG, whose artefacts move FID")
    with pytest.raises(
        ValueError, match=r"^samples = .*: 'p.jpg' \(2 of 3\) is a JPEG, whose .*; give PNGs, or --allow-jpe"
    ):
        opened(str(tmp_path))


def test_lossy_webps_are_as_jpegs(tmp_path):
    clear = np.concatenate([noise(1), np.full((1, 12, 10, 1), 99, np.uint8)], axis=3)  # a VP8X: there is more to it
    for name, lossless in (("lossy", False), ("lossless", True)):
        fill(tmp_path / name, noise(1), ["a.webp"], lossless=lossless)
        fill(tmp_path / name, clear, ["b.webp"], lossless=lossless)
        fill(tmp_path / name, noise(1), ["d.png"], format="WEBP", exif=b"Exif\0\0", lossless=lossless)
    assert opened(str(tmp_path / "lossless")).notes == []
    fill(tmp_path / "lossy", noise(2), ["e.png", "f.jpg"], format="JPEG")
    (note,) = opened(str(tmp_path / "lossy"), allow_jpeg=True).notes
    assert note.startswith("5 of 5 images are JPEG or lossy WebP, whose artefacts move FID")
    with pytest.raises(ValueError, match=r"^samples = .*: 'a.webp' \(5 of 5\) is a lossy WebP, whose .*; give PNGs"):
        opened(str(tmp_path / "lossy"))


def test_other_sizes_are_found_before_any_work(tmp_path):
    fill(tmp_path, noise(3))
    fill(tmp_path, noise(2, 10, 12), ["1.png", "7.png"])
    message = r"'1.png' has 12x10 pixels, '0.png' 10x12 \(2 of 4 differ\); give images of one size$"
    with pytest.raises(ValueError, match=message):
        opened(str(tmp_path))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_truncated_images_are_found_before_any_work(tmp_path, kind):
    fill(tmp_path, noise(3, 64, 64), format=kind, lossless=True)
    path = tmp_path / "1.png"
    content = path.read_bytes()
    for left in (0, 10, 30, 5000, -100):
        path.write_bytes(content[:left])
        with pytest.raises(ValueError, match=r"^samples = '[^\n]*': '1.png': [^\n]+; replace it or remove it$"):
            opened(str(tmp_path))


@pytest.mark.parametrize("level", [0, 6])
def test_a_damaged_png_is_found_before_any_work(tmp_path, level):
    fill(tmp_path, noise(3, 64, 64), compress_level=level)
    path = tmp_path / "2.png"
    whole = path.read_bytes()
    for at in (20, 40, 2000, 8000, -14):
        path.write_bytes(flipped(whole, at))
        with pytest.raises(ValueError, match=r"^samples = '[^\n]*': '2.png': [^\n]+; replace it or remove it$"):
            opened(str(tmp_path))
    path.write_bytes(whole + b"what follows an image does no harm" * 9)
    assert opened(str(tmp_path)).count == 3


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    fill(tmp_path, noise(1), format="PNG")
    fill(tmp_path, noise(1, 10, 12), ["sideways.png"], exif=exif)
    found = opened(str(tmp_path))
    assert found.shape == (12, 10)
    np.testing.assert_array_equal(all_pixels(found)[1], np.rot90(noise(1, 10, 12)[0], -1))


def test_colours_are_those_of_training(tmp_path, profiles):
    Image.new("RGB", (9, 9), (234, 51, 35)).save(tmp_path / "a.png", icc_profile=profiles["p3"])
    pixels = opened(str(tmp_path)).batch(range(1))[0, :, 0, 0]
    assert np.abs(pixels.numpy().astype(int) - (255, 0, 0)).max() <= 2


def test_what_is_no_image_is_refused(tmp_path):
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "a.png")
    fill(tmp_path / "strip", noise(1, 8, 900), ["a.png"])
    for name, reason in (("pipe", "not a file"), ("strip", "900x8 pixels, one side more")):
        with pytest.raises(ValueError, match=rf"^samples = [^\n]*: 'a.png': {reason}[^\n]*; replace it or remove it$"):
            opened(str(tmp_path / name))


def test_a_damaged_image_without_checksums_is_named_when_it_is_met(tmp_path):
    fill(tmp_path, noise(3, 64, 64), format="JPEG")
    path = tmp_path / "2.png"
    path.write_bytes(flipped(path.read_bytes(), 405, bits=255))  # in the tables of its codes
    images = opened(str(tmp_path), allow_jpeg=True)
    images.batch(range(2))
    with pytest.raises(ValueError, match=r"^samples = .*: '2.png': "):
        images.batch(range(2, 3))


# --- archives ---


@pytest.mark.parametrize("compressed", [False, True])
def test_an_archive_gives_what_numpy_gives(tmp_path, compressed):
    pixels, labels = noise(11), np.arange(11) % 3
    images = opened(archive(tmp_path / "drawn.npz", compressed, arr_0=pixels, arr_1=labels))
    assert (images.name, images.count, images.shape) == ("drawn.npz", 11, (12, 10))
    assert images.classes == ["0", "1", "2"]
    assert images.labels_N.tolist() == labels.tolist()
    for _ in range(2):  # the second pass goes back to the beginning
        np.testing.assert_array_equal(all_pixels(images), pixels)
    np.testing.assert_array_equal(images.batch(range(1, 11, 3)).permute(0, 2, 3, 1), pixels[1::3])
    assert opened(archive(tmp_path / "plain.npz", arr_0=pixels)).classes == []


def test_an_archive_is_read_a_batch_at_a_time(tmp_path, monkeypatch):
    path = archive(tmp_path / "drawn.npz", True, arr_0=np.zeros((3000, 64, 64, 3), np.uint8))
    most, read = 0, zipfile.ZipExtFile.read

    def watched(self, n=-1):
        nonlocal most
        most = max(most, len(content := read(self, n)))
        return content

    monkeypatch.setattr(zipfile.ZipExtFile, "read", watched)
    images = opened(path)
    assert images.batch(range(2000, 2004)).shape == (4, 3, 64, 64)
    assert most <= max(zipfile.ZipExtFile.MAX_SEEK_READ, 64 * 64 * 3)


def gaussian(dims, seed=0):
    features = np.random.default_rng(seed).normal(size=(3 * dims, dims))
    return features.mean(0), np.cov(features.T)


def test_statistics_are_read(tmp_path):
    (mu, sigma), (mu_s, sigma_s) = gaussian(6), gaussian(4)
    found = opened(archive(tmp_path / "a.npz", mu=mu, sigma=sigma.astype(np.float32), mu_s=mu_s, sigma_s=sigma_s))
    assert isinstance(found, Statistics)
    assert (found.name, len(found.pooled.mean_F), len(found.spatial.mean_F)) == ("a.npz", 6, 4)
    np.testing.assert_array_equal(found.pooled.mean_F, mu)
    np.testing.assert_array_equal(found.pooled.covariance_FF, sigma.astype(np.float32).astype(np.float64))
    np.testing.assert_array_equal(found.spatial.covariance_FF, sigma_s)
    both = opened(archive(tmp_path / "b.npz", arr_0=noise(5), mu=mu, sigma=sigma))
    assert isinstance(both, ImageSet)
    assert (len(both.statistics.pooled.mean_F), both.statistics.spatial) == (6, None)
    assert both.statistics.sha256 != found.sha256
    np.testing.assert_array_equal(all_pixels(both), noise(5))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": noise(3).astype(np.float32)}, r"arr_0 is float32 \(3, 12, 10, 3\); give images as uint8"),
        ({"arr_0": noise(0)}, r"arr_0 is uint8 \(0, 12"),
        ({"arr_0": np.asfortranarray(noise(3))}, r"arr_0 is in Fortran order"),
        ({"images": noise(3)}, r"holds images; give one with images as arr_0, or with mu and sigma"),
        ({}, r"holds nothing; give"),
        ({"arr_0": noise(3), "arr_1": np.arange(4)}, r"arr_1 is int64 \(4,\); give labels as integers \(3,\)"),
        ({"arr_0": noise(3), "arr_1": np.array([0, -1, 2])}, r"arr_1 has the label -1"),
        ({"arr_0": noise(3), "arr_1": np.array([0, 1, 10**15])}, r"3 images of 1000000000000001 classes, by arr_1"),
        ({"arr_0": noise(3), "x": np.array([{}], dtype=object)}, r"x holds Python objects"),
        ({"mu": np.zeros(3)}, r"holds mu alone; give one with both mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu is float64 \(3,\), sigma is float64 \(4, 4\); give"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "sigma_s": np.eye(3)}, r"holds sigma_s alone"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, r"mu or sigma is not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0, 1]])}, r"sigma is no covariance"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, r"sigma is no covariance"),
        ({"mu": np.zeros(2, int), "sigma": np.eye(2)}, r"mu is int64 \(2,\), sigma is float64"),
    ],
)
def test_an_archive_of_another_layout_is_refused(tmp_path, arrays, message):
    path = archive(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=rf"^samples = '{re.escape(path)}': {message}[^\n]*$"):
        opened(path)


def test_a_truncated_or_damaged_archive_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    archive(path, arr_0=noise(300))
    content = path.read_bytes()
    for left in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:left])
        with pytest.raises(ValueError, match=r"^samples = [^\n]*: is no .npz, or truncated \([^\n]*; write or fetch"):
            opened(str(path))
    path.write_bytes(flipped(content, len(content) // 2))  # known by the checksum, once all has been read
    images = opened(str(path))
    with pytest.raises(ValueError, match=r"^samples = [^\n]*: arr_0 is damaged \(Bad CRC-32"):
        all_pixels(images, 100)
    short = io.BytesIO()
    np.save(short, noise(3))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("arr_0.npy", short.getvalue()[:-1])
    with pytest.raises(ValueError, match=r"arr_0 is damaged \(1207 bytes do not fit its shape \(3, 12, 10, 3\)\)"):
        opened(str(path))


def test_what_is_not_there_is_said(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "none.npz": "does not exist; give a folder of images or an .npz",
        "none": "does not exist",
        "notes.txt": "is a file, but no .npz",
        "text.npz": "is no .npz",
        "empty": "holds no images",
    }.items():
        with pytest.raises(ValueError, match=rf"^samples = '[^\n]*{name}': {message}[^\n]*$"):
            opened(str(tmp_path / name))


# --- pairs ---


def pair(tmp_path, samples, reference):
    """Open two sets, each given as images, names of files or labels."""
    found = []
    for name, (pixels, classes) in {"a": samples, "b": reference}.items():
        if classes is None or isinstance(classes[0], str):
            path = fill(tmp_path / name, pixels, classes)
        else:
            path = archive(tmp_path / f"{name}.npz", arr_0=pixels, arr_1=np.array(classes))
        found.append(open_set(path, name, allow_jpeg=False))
    return found


FOUR = ["b/1.png", "b/2.png", "c/1.png", "d/1.png"]
FOLDERS = ["x y/1.png", "z/1.png"]


def test_pairs_that_fit_and_pairs_that_do_not(tmp_path):
    two, turned = noise(2), noise(2, 10, 12)
    for i, (samples, reference, problem) in enumerate(
        (
            ((noise(3), None), (two, None), None),
            ((two, FOLDERS), (two, None), None),
            ((two, FOLDERS), (two, ["x_y/1.png", "z/1.png"]), None),
            ((two, [0, 1]), (two, FOLDERS), None),
            ((two, None), (turned, None), "'b': samples and reference have 10x12 and 12x10 pixels; give a reference"),
            ((two, [0, 1]), (noise(3), [0, 1, 2]), "'b.npz': samples and reference have 2 and 3 classes; give a"),
            ((two, FOLDERS), (two, ["x y/1.png", "w/1.png"]), "'b': the classes .* differ, first 'z' and 'w'; give a"),
        )
    ):
        (tmp_path / str(i)).mkdir()
        sets = pair(tmp_path / str(i), samples, reference)
        if problem is None:
            check_pair(*sets)
            continue
        with pytest.raises(ValueError, match=rf"^reference = {problem}[^\n]*$"):
            check_pair(*sets)


def test_pairs_are_matched_by_the_names_of_classes(tmp_path):
    """A model's order need not be that of folders."""
    samples, reference = pair(tmp_path, (noise(3), ["b/1.png", "c/1.png", "d/1.png"]), (noise(4), FOUR))
    drawn = replace(samples, classes=["d", "b", "c"], ordered=False)
    check_pair(drawn, reference)
    matched = aligned(reference, drawn)
    assert (matched.classes, matched.labels_N.tolist()) == (["d", "b", "c"], [1, 1, 2, 0])
    numbered = replace(reference, classes=["0", "1", "2"])
    assert aligned(numbered, drawn) is numbered
    message = r"^reference = 'b': one set has classes by number, the other only some of its model's; give"
    with pytest.raises(ValueError, match=message):
        check_pair(drawn, numbered)
    for ours, theirs in ((["b", "c", "c"], ["c", "b", "c"]), (["b", "c", "e"], ["b", "c", "d"])):  # or which is which?
        with pytest.raises(ValueError, match=r"^reference = 'b': the classes of samples and reference differ"):
            check_pair(replace(drawn, classes=ours), replace(reference, classes=theirs))


def test_statistics_fit_any_samples_with_an_image_a_class(tmp_path):
    mu, sigma = gaussian(6)
    reference = opened(archive(tmp_path / "a.npz", mu=mu, sigma=sigma))
    images = opened(fill(tmp_path / "flat", noise(2)))
    check_pair(images, reference)
    few = ImageSet(**{**vars(images), "classes": ["a", "b", "c"], "labels_N": torch.tensor([0, 2])})
    with pytest.raises(ValueError, match=r"^samples = 'flat': 2 images of 3 classes; give more images$"):
        check_pair(few, reference)
