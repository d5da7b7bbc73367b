"""Folders and archives of images as `mvar evaluate` opens them: what is read, and what is refused before any work."""

import re
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from mvar.cli import main
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


def test_lossy_images_are_for_references_only(tmp_path):
    fill(tmp_path / "jpeg", noise(1))
    fill(tmp_path / "jpeg", noise(2), ["p.jpg", "q.png"], format="JPEG")  # the content counts, not the name
    found = opened(str(tmp_path / "jpeg"), allow_jpeg=True)
    assert (found.count, len(found.notes)) == (3, 1)
    assert found.notes[0].startswith("2 of 3 images are JPEG, whose artefacts move FID")
    message = r"^samples = .*: 'p.jpg' \(2 of 3\) is a JPEG, whose .*; give PNGs, or --allow-jpe"
    with pytest.raises(ValueError, match=message):
        opened(str(tmp_path / "jpeg"))

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
def test_damaged_images_are_found_before_any_work(tmp_path, kind):
    fill(tmp_path, noise(3, 64, 64), format=kind, lossless=True)
    path = tmp_path / "1.png"
    whole = path.read_bytes()
    damaged = [whole[:left] for left in (0, 30, -100)] + [flipped(whole, 2000)] * (kind == "PNG")
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^samples = '[^\n]*': '1.png': [^\n]+; replace it or remove it$"):
            opened(str(tmp_path))


def test_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    fill(tmp_path, noise(1), format="PNG")
    fill(tmp_path, noise(1, 10, 12), ["sideways.png"], exif=exif)
    found = opened(str(tmp_path))
    assert found.shape == (12, 10)
    np.testing.assert_array_equal(all_pixels(found)[1], np.rot90(noise(1, 10, 12)[0], -1))


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
        ({"arr_0": np.asfortranarray(noise(3))}, r"arr_0 is uint8 .* in Fortran order; give"),
        ({"images": noise(3)}, r"holds images; give one with images as arr_0, or with mu and sigma"),
        ({"arr_0": noise(3), "arr_1": np.arange(4)}, r"arr_1 is int64 \(4,\); give integers from 0 of shape \(3,\)"),
        ({"arr_0": noise(3), "arr_1": np.array([0, -1, 2])}, r"arr_1 is int64 \(3,\); give integers from 0"),
        ({"mu": np.zeros(3)}, r"holds mu alone; give one with both mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"statistics are \(3,\) and \(4, 4\); give mu"),
        ({"mu": np.zeros(3), "sigma": np.full((3, 3), np.nan)}, r"its statistics are not finite"),
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
    message = r"^samples = [^\n]*: is no .npz, or damaged \([^\n]*; write or fetch it again$"
    for left in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:left])
        with pytest.raises(ValueError, match=message):
            opened(str(path))
    path.write_bytes(flipped(content, len(content) // 2))  # known by the checksum, once all has been read
    images = opened(str(path))
    with pytest.raises(ValueError, match=message):
        all_pixels(images, 100)


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
