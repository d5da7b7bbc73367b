import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mvar
from mvar.cli import main
from mvar.evaluation import runner
from mvar.evaluation.collect import collect
from mvar.evaluation.frechet import bootstrap_pairs, fit, frechet_distance
from mvar.evaluation.manifold import overlap
from mvar.evaluation.sets import open_set
from mvar.features.base import Extracted
from mvar.features.extractors import Extractor, find_extractor


class Pixels(Extractor):
    """A network of no layers: small images as they are, with something to stand for the other outputs."""

    network, distance, dimensions = "pixels", "FID", 12
    resize, dtype, weights_sha256 = "none", "float32", "0"

    def __init__(self):
        self.device = torch.device("cpu")

    def _extract(self, images):
        small = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return Extracted(small, small[:, :6] * 2, small.softmax(1))


@pytest.fixture
def pixels(monkeypatch):
    extractor = Pixels()
    monkeypatch.setattr(runner, "find_extractor", lambda *args, **kwargs: extractor)
    return extractor


def images(count, seed, side=16):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((1, side // 2, side // 2, 1), dtype=np.uint8))


def save(path, array, **others):
    np.savez(path, arr_0=array, **others)
    return str(path)


def seen(extractor, array):
    """Features of images."""
    return extractor(torch.from_numpy(array).permute(0, 3, 1, 2))


def folder(path, array, classes=2):
    for i, image in enumerate(array):
        target = path / f"c{i % classes}"
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target / f"{i:04d}.png")
    return str(path)


def test_every_measure_is_that_of_the_features(pixels, tmp_path):
    fake, real = images(60, 0), images(50, 1)
    report = mvar.evaluate(save(tmp_path / "a.npz", fake), save(tmp_path / "b.npz", real), out=tmp_path / "out")
    ours, theirs = (seen(pixels, x) for x in (fake, real))
    expected = {
        "FID": frechet_distance(fit(ours.pooled_BF), fit(theirs.pooled_BF)),
        "sFID": frechet_distance(fit(ours.spatial_BS), fit(theirs.spatial_BS)),
        **overlap(theirs.pooled_BF, ours.pooled_BF)._asdict(),
    }
    found = {name: value.value for name, value in report.metrics.items()}
    assert {*found} == {*expected, "KID", "IS"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6)
    assert report.metrics["FID"].low < found["FID"] < report.metrics["FID"].high
    assert report.metrics["FID"].floor is not None
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["protocol"]["samples"] == 60
    assert written["floor"]["name"] == "some of the reference"
    same = mvar.evaluate(save(tmp_path / "a.npz", fake), save(tmp_path / "a.npz", fake)).metrics
    assert same["FID"].value == pytest.approx(0, abs=1e-6)
    assert same["precision"].value == same["recall"].value == same["coverage"].value == 1


def test_the_floor_is_of_other_real_images_as_many_as_the_samples(pixels, tmp_path):
    fake, real, other = images(40, 0), images(50, 1), images(90, 2)
    paths = [save(tmp_path / f"{i}.npz", x) for i, x in enumerate((fake, real, other))]
    report = mvar.evaluate(*paths[:2], floor=paths[2])
    chosen = torch.randperm(90, generator=torch.Generator().manual_seed(0))[[i * 90 // 40 for i in range(40)]]
    some = other[chosen.sort().values]
    ours, theirs = (seen(pixels, x).pooled_BF for x in (some, real))
    assert report.metrics["FID"].floor == pytest.approx(frechet_distance(fit(ours), fit(theirs)), rel=1e-6)
    assert report.floor["images"] == 40
    few, many = (save(tmp_path / f"{n}.npz", images(n, n)) for n in (20, 90))
    report = mvar.evaluate(few, many)
    assert (report.floor["images"], report.floor["against"]) == (20, "its other 70")
    assert not any(note.startswith("floor:") for note in report.notes if "dimensions" not in note)
    report = mvar.evaluate(many, few)
    assert report.floor["images"] == 10
    assert any("fewer than the samples" in note for note in report.notes)


def test_statistics_stand_for_images_where_they_are_of_the_same_network(pixels, tmp_path):
    fake, real = images(60, 0), images(50, 1)
    features = seen(pixels, real)
    names = {"mu": fit(features.pooled_BF)[0], "sigma": fit(features.pooled_BF)[1]}
    names |= {"mu_s": fit(features.spatial_BS)[0], "sigma_s": fit(features.spatial_BS)[1]}
    np.savez(tmp_path / "statistics.npz", **{name: tensor.numpy() for name, tensor in names.items()})
    samples = save(tmp_path / "a.npz", fake)
    alone = mvar.evaluate(samples, str(tmp_path / "statistics.npz"))
    whole = mvar.evaluate(samples, save(tmp_path / "b.npz", real))
    assert {*alone.metrics} == {"FID", "sFID", "IS"}
    for name in alone.metrics:
        assert alone.metrics[name].value == pytest.approx(whole.metrics[name].value, rel=1e-6)
    assert alone.metrics["FID"].floor is None
    pixels.dimensions = 13
    with pytest.raises(ValueError, match="statistics of 12 features, pixels has 13"):
        mvar.evaluate(samples, str(tmp_path / "statistics.npz"))


def test_classes_have_their_own_measures(pixels, tmp_path):
    fake, real = images(30, 0), images(40, 1)
    report = mvar.evaluate(folder(tmp_path / "a", fake), folder(tmp_path / "b", real))
    assert [(row["class"], row["samples"], row["real"]) for row in report.classes] == [("c0", 15, 20), ("c1", 15, 20)]
    ours, theirs = (seen(pixels, x[::2]).pooled_BF for x in (fake, real))
    assert report.classes[0].items() >= overlap(theirs, ours)._asdict().items()


@pytest.mark.parametrize("order", ["sorted", "cyclic"])
def test_floor_and_limit_do_not_depend_on_the_order_of_classes(pixels, tmp_path, order):
    """Classes far apart: a half, or a few, that lack some of them would be far from the others."""
    labels = np.arange(6).repeat(20) if order == "sorted" else np.tile(np.arange(6), 20)
    array = np.full((120, 16, 16, 3), 40, dtype=np.uint8) * labels[:, None, None, None].astype(np.uint8)
    array += np.random.default_rng(0).integers(0, 5, array.shape, dtype=np.uint8)
    path = save(tmp_path / "a.npz", array, arr_1=labels)
    assert mvar.evaluate(path, path).metrics["FID"].floor < 1e-3
    assert mvar.evaluate(path, path, floor=path, limit=24).metrics["FID"].floor < 1e-3
    limited = mvar.evaluate(path, path, limit=24)
    assert [row["samples"] for row in limited.classes] == [4] * 6


def test_images_with_statistics_are_measured_by_them_in_one_pipeline_only(pixels, tmp_path):
    """As ADM's references: the statistics are of more images than there are."""
    fake, real, more = images(60, 0), images(50, 1), images(90, 2)
    whole = seen(pixels, more)
    statistics = {"mu": fit(whole.pooled_BF)[0], "sigma": fit(whole.pooled_BF)[1]}
    path = save(tmp_path / "both.npz", real, **{name: tensor.numpy() for name, tensor in statistics.items()})
    samples = save(tmp_path / "a.npz", fake)
    options = {"features": "inception"}
    by_file = mvar.evaluate(samples, path, **options)
    ours = seen(pixels, fake)
    assert by_file.metrics["FID"].value == pytest.approx(frechet_distance(fit(ours.pooled_BF), fit(whole.pooled_BF)))
    assert by_file.floor["against"] == "its statistics"
    assert "precision" in by_file.metrics
    by_images = mvar.evaluate(samples, save(tmp_path / "alone.npz", real), **options)
    other = mvar.evaluate(samples, path, **options, pipeline="pytorch-fid")
    assert other.metrics["FID"].value == by_images.metrics["FID"].value
    assert other.floor == by_images.floor  # real images against others, not against themselves
    assert other.metrics["FID"].floor == by_images.metrics["FID"].floor > 0.01
    limited = mvar.evaluate(samples, path, **options, limit=40)
    assert any("its statistics are of all its images, and not used" in note for note in limited.notes)


def test_how_samples_were_chosen_is_in_the_report(bundle, pixels, tmp_path):
    drawn, path = tmp_path / "drawn", tmp_path / "a.npz"
    command = ["sample-best", "--model", bundle, "--per-class", "6", "--of", "2", "--guidance", "2"]
    main([*command, "--out-dir", str(drawn), "--npz", str(path)])
    for samples in (drawn, path):
        report = mvar.evaluate(str(samples), str(samples), limit=8)
        told = report.samples["drawn_with"]
        assert (told["judge"], told["keep"], told["of"], told["guidance"], told["seed"]) == ("self", 1, 2, 2.0, 0)
        assert told["sha256"].keys() == {"config.json", "tokenizer.safetensors", "generator.safetensors"}
        assert "images" not in told
    (drawn / "cat-000000.png").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 image of the 12 that its samples\.json lists"):
        mvar.evaluate(str(drawn), str(path))


def test_features_are_kept_and_a_damaged_file_of_them_is_made_again(tmp_path):
    opened = open_set(save(tmp_path / "a.npz", images(23, 0)), "samples", allow_jpeg=False)
    kept, seconds = collect(opened, Pixels(), 4, cache=tmp_path)
    assert seconds > 0
    (file,) = tmp_path.glob("*.safetensors")

    class Broken(Pixels):
        def _extract(self, images):
            raise ValueError("the cache has them")

    again, seconds = collect(opened, Broken(), 4, cache=tmp_path)
    assert seconds is None
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    file.write_bytes(file.read_bytes()[:-100])
    repaired = collect(opened, Pixels(), 4, cache=tmp_path).features
    assert all(torch.equal(a, b) for a, b in zip(kept, repaired, strict=True))


def test_what_breaks_in_one_process_ends_all(tmp_path):
    class Second:
        """A process that hears of a problem in the other."""

        rank, size = 1, 2

        def gather(self, value):
            return [ValueError("image 7 is damaged"), value]

        def on_main(self, work):
            return work()

    opened = open_set(folder(tmp_path / "a", images(23, 0)), "samples", allow_jpeg=False)
    with pytest.raises(ValueError, match="image 7 is damaged"):
        collect(opened, Pixels(), 4, Second())


def test_reconstructions_are_compared_pairwise_too(tmp_path):
    model = mvar.load("fashion-mnist")
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    report = mvar.evaluate(model, save(tmp_path / "real.npz", real))
    restored = model.tokenizer.reconstruct(torch.from_numpy(real).permute(0, 3, 1, 2) / 255)
    error = ((restored * 255).round().clamp(0, 255) / 255 - torch.from_numpy(real).permute(0, 3, 1, 2) / 255).square()
    expected = (-10 * error.flatten(1).mean(1).log10()).mean()
    assert report.metrics["PSNR, dB"].value == pytest.approx(float(expected), abs=1e-3)
    assert -1 <= report.metrics["SSIM"].value <= 1
    assert "FD-EffNetLite0" in report.metrics
    assert "FID" not in report.metrics
    assert "N = 12 is below 2 x 320 dimensions" in report.notes[0]
    told = report.samples
    assert told["drawn_with"] == {"tokenizer": model.tokenizer.fingerprint(), "dtype": "float32"}
    assert told["sha256"] != report.protocol["reference_sha256"]  # they are other images
    seen = [
        find_extractor("effnet-lite0")(x).pooled_BF
        for x in (restored.mul(255).round().byte(), torch.from_numpy(real).permute(0, 3, 1, 2))
    ]
    value = report.metrics["FD-EffNetLite0"]
    assert (value.low, value.high) == pytest.approx(bootstrap_pairs(*seen), rel=0.01)


def test_the_command_tells_which_tokenizer_restored(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "real.npz", images(12, 0, side=8))  # too small for SSIM's windows
    main(["evaluate", "--model", bundle, "--reference", "real.npz", "--out", "out", "--cache", "kept"])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    told = report["samples"]["drawn_with"]
    expected = hashlib.sha256(Path(bundle, "tokenizer.safetensors").read_bytes()).hexdigest()
    assert (told["model"], told["sha256"]["tokenizer.safetensors"], told["dtype"]) == (bundle, expected, "float32")
    assert "PSNR, dB" in report["metrics"]
    assert "SSIM" not in report["metrics"]
    assert {*report["speed"]} == {"images_per_second", "seconds", "peak_bytes"}
    main(["evaluate", "--samples", "real.npz", "--reference", "real.npz", "--out", "out", "--cache", "kept"])
    assert {*json.loads((tmp_path / "out" / "report.json").read_text())["speed"]} == {"seconds", "peak_bytes"}


def test_classes_of_the_sides_are_compared(pixels, tmp_path):
    two, three = (save(tmp_path / f"{n}.npz", images(30, n), arr_1=np.arange(30) % n) for n in (2, 3))
    plain = save(tmp_path / "plain.npz", images(30, 5))
    uneven = save(tmp_path / "uneven.npz", images(40, 1), arr_1=np.arange(40) % 4 // 3)
    with pytest.raises(ValueError, match="samples and floor have 2 and 3 classes; give a floor of the same classes"):
        mvar.evaluate(two, two, floor=three)
    assert any("different shares" in note for note in mvar.evaluate(two, uneven).notes)
    assert not any("different shares" in note for note in mvar.evaluate(two, two).notes)
    mvar.evaluate(plain, two, floor=three)  # samples without classes are compared with any


def test_in_two_processes_as_in_one(processes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, seed in (("fake", 0), ("real", 1)):
        folder(tmp_path / name, images(24, seed, side=32))
    asked = ["evaluate", "--samples", "fake", "--reference", "real", "--batch-size", "5", "--out"]
    main([*asked, "one"])
    processes.Ranks(2, processes.COMMAND, [*asked, "two"], tmp_path).finish()
    one, two = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert (one["metrics"], one["classes"], one["protocol"]) == (two["metrics"], two["classes"], two["protocol"])
    capsys.readouterr()
    main(["compare", "--reports", "one,two"])
    shown = capsys.readouterr().out
    assert shown.splitlines()[2].startswith("| one | ")
    assert shown.splitlines()[2].replace("one", "two") == shown.splitlines()[3]
    assert "Protocol: network effnet-lite0, " in shown


def test_a_floor_may_hold_more_classes_and_these_count_for_nothing(pixels, tmp_path):
    for seed, (name, classes) in enumerate({"samples": "bc", "two": "bc", "three": "abc", "other": "abd"}.items()):
        for letter in classes:
            (tmp_path / name / letter).mkdir(parents=True)
            for i, image in enumerate(images(12, (seed == 0, ord(letter)))):
                Image.fromarray(image).save(tmp_path / name / letter / f"{i}.png")
    samples, two, three, other = (str(tmp_path / name) for name in ("samples", "two", "three", "other"))
    reports = [mvar.evaluate(samples, two, floor=floor) for floor in (two, three)]
    assert reports[0].floor["images"] == reports[1].floor["images"] == 24
    assert reports[0].metrics["FID"].floor == pytest.approx(reports[1].metrics["FID"].floor, abs=1e-9)
    with pytest.raises(ValueError, match="samples and floor have 2 and 3 classes; give a floor of the same classes"):
        mvar.evaluate(samples, two, floor=other)
