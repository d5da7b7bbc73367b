"""The report beside drawn images: a set that was interrupted, or holds other images, is refused."""

import hashlib
import json
import os
import tracemalloc
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar import model
from mvar.cli import main
from mvar.evaluation.sets import open_set
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.sampling import engine, export, report
from mvar.sampling.report import Samples, read_samples

CLASSES, EACH = 20, 10


@pytest.fixture
def sample(bundle, tmp_path):
    """Draw into a folder and an .npz."""
    common = ["--model", bundle, "--out-dir", str(tmp_path / "drawn"), "--npz", str(tmp_path / "drawn.npz")]
    return lambda *more, command="sample": main([command, *common, "--batch-size", "2", *more])


def opened(path):
    return open_set(str(path), "samples", allow_jpeg=False)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def images(folder):
    return sorted(path.name for path in Path(folder).glob("*.png"))


# --- the order of an .npz ---


@pytest.fixture(scope="module")
def many_classes(bundle, tmp_path_factory):
    """A bundle of a model of 20 classes."""
    loaded = model.load(bundle)
    network = Generator(replace(loaded.generator.config, num_classes=CLASSES)).eval()
    initialise(network, seed=0)
    folder = tmp_path_factory.mktemp("many")
    model.Model(loaded.tokenizer, network, [f"c{i}" for i in range(CLASSES)]).save(folder)
    return str(folder)


@pytest.mark.parametrize("command", [["sample-set"], ["sample", "--labels", ",".join(map(str, range(CLASSES)))]])
def test_consecutive_images_of_an_npz_are_of_all_classes(many_classes, tmp_path, monkeypatch, command):
    """ADM's suite computes the Inception score over parts of consecutive images."""

    def drawn(self, labels, *, index, **settings):  # each image has its label and its number as its colour
        colours = torch.tensor([[label, i % 256, i // 256] for label, i in zip(labels, index, strict=True)]) / 255
        return engine.SampleOutput(colours[:, :, None, None].expand(-1, -1, 8, 8), None)

    monkeypatch.setattr(model.Model, "sample", drawn)
    draw = [*command, "--model", many_classes, "--per-class", str(EACH), "--npz"]
    main([*draw, str(tmp_path / "a.npz")])
    main([*draw, str(tmp_path / "other.npz"), "--seed", "1"])
    with np.load(tmp_path / "a.npz") as arrays, np.load(tmp_path / "other.npz") as others:
        pixels, labels, index = arrays["arr_0"][:, 0, 0].astype(int), arrays["arr_1"], arrays["index"]
        assert others["index"].tolist() != index.tolist()
    assert (labels.dtype, index.dtype, sorted(index)) == (np.int64, np.int64, list(range(CLASSES * EACH)))
    assert pixels[:, 0].tolist() == labels.tolist() == (index // EACH).tolist()
    assert (pixels[:, 1] + 256 * pixels[:, 2]).tolist() == index.tolist()
    assert min(len(set(part)) for part in labels.reshape(10, -1)) > 7  # chance gives 13 of 20; class by class, 2


def test_an_npz_is_written_without_a_second_array(tmp_path):
    pixels = np.zeros((400, 64, 64, 3), np.uint8)
    samples = Samples.of([0] * len(pixels), str, {})
    tracemalloc.start()
    try:
        samples.save_npz(pixels, str(tmp_path / "a.npz"), 0)
        assert tracemalloc.get_traced_memory()[1] < 0.5 * pixels.nbytes
    finally:
        tracemalloc.stop()


# --- the images of a folder ---


def test_a_second_run_leaves_no_image_of_the_first(sample, tmp_path, capsys):
    out, npz = tmp_path / "drawn", tmp_path / "drawn.npz"
    sample("--per-class", "4")
    assert "replacing" not in capsys.readouterr().err
    (out / "notes.txt").write_text("mine")
    (out / "cat-000000.png").unlink()
    (out / ".cat-000001.0123abcd.partial.png").write_bytes(b"half")  # of a process that was killed
    sample("--labels", "cat,dog,cat", "--of", "2", command="sample-best")
    assert f"{out}: replacing 7 images of an earlier run\n" in capsys.readouterr().err
    assert set(contents(out)) == {"cat-000000.png", "dog-000001.png", "cat-000002.png", "samples.json", "notes.txt"}
    rows = read_samples(out)
    assert (rows.labels, rows.classes, rows.facts["judge"]) == ([0, 1, 0], {0: "cat", 1: "dog"}, "self")
    assert len(opened(npz).labels_N) == 3
    sample("--labels", "dog")
    assert images(out) == ["dog-000000.png"]
    assert "judge" not in read_samples(out).facts


def test_names_are_compared_in_one_form(sample, tmp_path):
    """Some file systems give back another form of the same name."""
    out = tmp_path / "drawn"
    sample()
    listed = json.loads((out / "samples.json").read_text())
    listed["images"][0]["file"] = unicodedata.normalize("NFC", "cafe\u0301.png")
    (out / "samples.json").write_text(json.dumps(listed))
    (out / "cat-000000.png").rename(out / unicodedata.normalize("NFD", "cafe\u0301.png"))
    assert opened(out).count == 2
    sample()
    assert images(out) == ["cat-000000.png", "dog-000001.png"]


def test_an_interrupted_run_is_no_set(sample, tmp_path, monkeypatch):
    """Its batches have two images; before the first one, nothing is touched."""
    out, npz = tmp_path / "drawn", tmp_path / "drawn.npz"
    sample("--per-class", "3")
    first = contents(tmp_path)
    draw, write, done = model.Model.sample, export.atomic_write, []

    def killed(path, save):
        done.append(path)
        if len(done) > 5:
            raise KeyboardInterrupt
        write(path, save)

    monkeypatch.setattr(model.Model, "sample", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample("--per-class", "3", "--seed", "1")
    assert contents(tmp_path) == first
    monkeypatch.setattr(model.Model, "sample", draw)
    monkeypatch.setattr(export, "atomic_write", killed)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        sample("--per-class", "3", "--seed", "1")
    monkeypatch.undo()
    assert len(images(out)) == 5
    message = r"drawn': lacks 1 image of the 6 that its samples\.json lists, first 'dog-000005\.png'; draw them by the"
    with pytest.raises(ValueError, match=message):
        opened(out)
    assert npz.read_bytes() == first["drawn.npz"]
    assert opened(npz).drawn_with["seed"] == 0
    sample("--per-class", "3", "--seed", "1")
    assert opened(out).drawn_with["seed"] == opened(npz).drawn_with["seed"] == 1


def test_no_report_lies_beside_an_npz_of_another_run(sample, tmp_path, monkeypatch):
    npz, listed, there = tmp_path / "drawn.npz", tmp_path / "drawn.samples.json", []
    sample()
    first = npz.read_bytes(), listed.read_bytes()

    def full(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(SystemExit):
            sample("--seed", "1")
    assert (npz.read_bytes(), listed.read_bytes()) == first
    move = os.replace

    def watched(source, target):
        there.extend([listed.exists()] if target == npz else [])
        move(source, target)

    monkeypatch.setattr(os, "replace", watched)
    sample("--seed", "1")
    assert there == [False]
    assert opened(npz).drawn_with["seed"] == 1


def test_images_of_others_are_neither_taken_in_nor_removed(sample, bundle, tmp_path, refused):
    out = tmp_path / "drawn"
    sample()
    mine = out / "cat-000007.png"
    Image.new("RGB", (8, 8)).save(mine)
    for name in ("a10.JPG", "a9.webp"):
        (out / name).write_bytes(b"x")
    before = contents(tmp_path)
    line = f"out_dir = {str(out)!r}: holds 3 images that no samples.json lists, first 'a9.webp'; give a new folder, or"
    edit = ["edit", "--model", bundle, "--image", str(mine), "--box", "0,0,4,4", "--out-dir", str(out)]
    for command in (["sample", "--model", bundle, "--out-dir", str(out)], edit):
        assert refused(*command) == [f"mvar: {line} remove them"]
        sheet = str(out / "sheet.png")
        assert refused(*command, "--out", sheet)[1:] == [
            f"mvar: out = {sheet!r}: would lie among the images of out_dir; give another folder"
        ]
    assert contents(tmp_path) == before
    with pytest.raises(ValueError, match=r"^samples = [^\n]*: holds 3 images that its samples\.json does not list"):
        opened(out)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"mvar": "0"}', "[" * 100000, '{"images": []}']
    + [
        json.dumps({"mvar": "0", "images": [{"number": 0, "file": "a.png", "class": "a", "label": 0} | wrong]})
        for wrong in ({"file": "../mine.png"}, {"file": "a.txt"}, {"number": 1}, {"label": "0"}, {"class": None})
    ],
)
def test_a_report_of_another_program_is_left_alone(bundle, tmp_path, refused, content):
    """Images are removed by its names: none that lies elsewhere, whatever it says."""
    out = tmp_path / "drawn"
    out.mkdir()
    for path in (tmp_path / "mine.png", out / "a.txt"):
        path.write_bytes(b"mine")
    (out / "samples.json").write_text(content)
    before = contents(tmp_path)
    (line,) = refused("sample", "--model", bundle, "--out-dir", str(out))
    assert line.startswith(f"mvar: out_dir = {str(out)!r}: {out / 'samples.json'}: ")
    assert line.endswith("; remove it if the images are not mvar's")
    assert contents(tmp_path) == before


def test_a_protocol_of_another_program_is_refused(tmp_path):
    ours = {"protocol": "p", "classes": ["a", "b"], "counts": [2, 0]}
    (tmp_path / "protocol.json").write_text(json.dumps(ours))
    assert read_samples(tmp_path).files == ["a-000000.png", "a-000001.png"]
    assert read_samples(tmp_path).facts == ours
    changes = [{"counts": counts} for counts in ([1], [0, 0], [-1, 2], [True, 1], [1e9, 1e9], [10**7, 1], 3, None)]
    changes += [{"classes": ["a", 1]}, {"classes": {"0": "a", "1": "b"}}]
    for wrong in [*(ours | change for change in changes), {"protocol": "p"}, {}, [], "protocol", 3, None]:
        (tmp_path / "protocol.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"protocol\.json: was not written by mvar; remove it if the images are"):
            read_samples(tmp_path)


def test_only_a_regular_file_of_a_bounded_size_is_read(tmp_path, monkeypatch):
    """A pipe would be waited for without end."""
    for name in ("samples.json", "protocol.json"):
        path = tmp_path / name
        os.mkfifo(path)
        with pytest.raises(ValueError, match=f"{name}: cannot be read \\(is not a file\\); remove it if the"):
            read_samples(tmp_path)
        path.unlink()
    path.write_text("{}")
    monkeypatch.setattr(report, "MOST_WRITTEN", 1)
    with pytest.raises(ValueError, match=r"protocol\.json: cannot be read \(has 2 bytes, more than 1\)"):
        read_samples(tmp_path)


def test_the_report_of_edited_images_says_what_decides_them(bundle, tmp_path):
    """Paths alone do not: another image may lie there tomorrow."""
    photo, mask, out = tmp_path / "photo.png", tmp_path / "mask.png", tmp_path / "edits"
    Image.new("RGB", (8, 8), "red").save(photo)
    hole = Image.new("L", (8, 8))
    hole.paste(255, (0, 0, 4, 4))
    hole.save(mask)

    def facts(*more):
        main(["edit", "--model", bundle, "--image", str(photo), "--out-dir", str(out), *more])
        return read_samples(out).facts

    first = facts("--mask", str(mask), "--paste", "--feather", "2", "--n", "3")
    for name, path in (("image", photo), ("mask", mask)):
        assert first[name] == str(path)
        assert first[f"{name}_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert first["feather"] == 2
    assert facts("--box", "0,0,4,4", "--paste")["feather"] == 4
    without = facts("--box", "0,0,4,4", "--label", "dog", "--n", "2")
    assert (without["feather"], without["mask_sha256"], without["box"]) == (None, None, [0, 0, 4, 4])
    assert images(out) == ["edited-000000.png", "edited-000001.png"]
    found = read_samples(out)
    assert (found.labels, found.classes, opened(out).count) == ([1] * 2, {1: "dog"}, 2)


def test_a_path_that_is_not_utf_8_can_be_told(bundle, tmp_path):
    """Half characters stand for such bytes; they are written as JSON has them."""
    report.write_beside(tmp_path, "a.json", {"model": "b\udcff", "class": "\u00e9"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"model": "b\udcff", "class": "\u00e9"}


def test_a_set_has_a_largest_size(many_classes, tmp_path, refused):
    draw = ["--model", many_classes, "--per-class", "1000000", "--npz", str(tmp_path / "a.npz")]
    labels = ",".join(map(str, range(11)))
    for command, count in ((["sample", "--labels", labels], "11,000,000"), (["sample-set"], "20,000,000")):
        assert refused(*command, *draw) == [
            f"mvar: per_class: asks for {count} images, a set has at most 10,000,000; ask for fewer"
        ]
