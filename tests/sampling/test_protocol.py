"""Samples for an evaluation: the same files however often the run is killed and however many processes share it."""

import json
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mvar
from mvar import job, model
from mvar.cli import main
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.sampling import protocol
from mvar.sampling.labels import places
from mvar.sampling.protocol import SampleSet, counts_like
from mvar.sampling.report import read_samples

PACKAGED = ["sample-set", "--model", "fashion-mnist", "--per-class", "2", "--batch-size", "3"]


def tiny(bundle, *more):
    return ["sample-set", "--model", bundle, "--per-class", "5", "--batch-size", "2", *more]


def contents(folder):
    """Every file, hidden ones too."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def facts(images):
    """What protocol.json says."""
    return read_samples(images).facts


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """What an uninterrupted run of one process writes: a folder and an .npz."""
    root = tmp_path_factory.mktemp("protocol")
    main([*PACKAGED, "--out-dir", str(root / "drawn"), "--npz", str(root / "drawn.npz")])
    return root


KILLED_IN_THE_EIGHTH_IMAGE = """
import os, signal, sys
from mvar.cli import main
from mvar.sampling import export

write, done = export.atomic_write, []

def half(partial):
    partial.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

def atomic_write(path, save):
    done.append(path)
    write(path, half if len(done) == 8 else save)

export.atomic_write = atomic_write
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_to_the_same_images(packaged, processes, tmp_path):
    out = tmp_path / "drawn"
    killed = processes.Processes(KILLED_IN_THE_EIGHTH_IMAGE, [*PACKAGED, "--out-dir", out], tmp_path)
    assert killed.wait() == [-signal.SIGKILL]
    kept = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*.png")}
    assert 6 <= len(kept) <= 7  # two batches, and where a thread was quick one image of the third
    assert b"half" in [path.read_bytes() for path in out.glob(".*.png")]
    main([*PACKAGED, "--out-dir", str(out)])
    assert contents(out) == contents(packaged / "drawn")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_two_processes_draw_what_one_does(packaged, processes, tmp_path):
    shared = [*PACKAGED, "--out-dir", tmp_path / "drawn", "--npz", tmp_path / "drawn.npz"]
    both = processes.Ranks(2, processes.COMMAND, shared, tmp_path)
    both.finish()
    assert "20 images, 11 of them drawn now by this process" in both.output()
    assert contents(tmp_path / "drawn") == contents(packaged / "drawn")
    assert (tmp_path / "drawn.npz").read_bytes() == (packaged / "drawn.npz").read_bytes()


def test_the_images_are_those_of_sample(packaged, tmp_path):
    """Numbers, classes and seed are as anywhere else."""
    asked = ["--labels", "0,1,2", "--per-class", "2", "--batch-size", "3", "--out-dir", str(tmp_path)]
    main(["sample", "--model", "fashion-mnist", *asked])
    drawn, images = contents(packaged / "drawn"), contents(tmp_path)
    del images["samples.json"]
    assert {name: drawn[name] for name in images} == images
    assert len(images) == 6


def test_classes_have_as_many_images_as_in_a_folder(bundle, tmp_path, refused):
    like, out = tmp_path / "like", tmp_path / "drawn"
    for name, count in (("cat", 3), ("dog", 1)):
        (like / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8)).save(like / name / f"{i}.png")
    command = ["sample-set", "--model", bundle, "--batch-size", "2"]
    main([*command, "--counts-of", str(like), "--out-dir", str(out), "--npz", str(tmp_path / "drawn.npz")])
    assert facts(out)["counts"] == [3, 1]
    names = ["cat-000000.png", "cat-000001.png", "cat-000002.png", "dog-000003.png"]
    assert sorted(path.name for path in out.glob("*.png")) == names
    with np.load(tmp_path / "drawn.npz") as arrays:
        assert arrays["arr_1"][arrays["index"].argsort()].tolist() == [0, 0, 0, 1]
    for chosen, counts in ((["dog", "--per-class", "2"], [0, 2]), (["cat", "--counts-of", str(like)], [3, 0])):
        main([*command, "--labels", *chosen, "--out-dir", str(tmp_path / chosen[0])])
        assert facts(tmp_path / chosen[0])["counts"] == counts
    for wrong, what in ((like / "cat", "holds no classes, the model draws"), (tmp_path / "none", "does not exist")):
        (line,) = refused(*command, "--out-dir", str(out), "--counts-of", str(wrong))
        assert line.startswith(f"mvar: counts_of = {str(wrong)!r}: {what}")
    (line,) = refused(*command, "--labels", "dog,-1", "--out-dir", str(tmp_path / "none"))
    assert line == "mvar: labels = 'dog,-1': has -1, but a set is of classes; leave it out"
    assert not (tmp_path / "none").exists()


def test_classes_are_those_of_folders_whose_names_differ_in_form_only(tmp_path):
    folders = {"C": 1, "c++": 2, "cafe\u0301 ": 3, "T-shirt_top": 4}  # "/" can be in no folder's name
    for name, count in folders.items():
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    assert counts_like(str(tmp_path), ["T-shirt/top", "Caf\u00e9", "c++", "c"], "counts_of") == [4, 3, 2, 1]
    with pytest.warns(UserWarning, match="^counts_of = '.*': has none of dog, so that none is drawn$"):
        counts = counts_like(str(tmp_path), ["T-shirt/top", "Caf\u00e9", "dog", "c++", "c"], "counts_of")
    assert counts == [4, 3, 0, 2, 1]
    with pytest.raises(
        ValueError, match=r"holds C, c\+\+, café, T-shirt_top, the model draws c, d; give a folder with"
    ):
        counts_like(str(tmp_path), ["c", "d"], "counts_of")
    assert places(["a", "b", "c"], ["C", "c", "A"]) == [2, -1, 1]
    assert places(["a"], ["A", "A "]) == [-1]


def test_the_settings_lie_beside_the_images(packaged, bundle, tmp_path):
    found = facts(packaged / "drawn")
    assert found == json.loads((packaged / "drawn.protocol.json").read_text())
    assert (found["protocol"], found["counts"], found["model"]) == ("imagenet-50k", [2] * 10, "fashion-mnist")
    own = asdict(mvar.load("fashion-mnist").defaults)
    assert {name: found[name] for name in own} == own
    assert (found["seed"], found["batch_size"]) == (0, 3)
    assert found["sha256"].keys() == {"config.json", "tokenizer.safetensors", "generator.safetensors"}
    given = ["--guidance", "2", "--top-k", "7", "--top-p", "0.5", "--seed", "3", "--dtype", "bfloat16"]
    main([*tiny(bundle, *given), "--npz", str(tmp_path / "a.npz")])
    found = facts(tmp_path / "a.npz")
    assert [found[name] for name in ("guidance", "top_k", "top_p", "seed", "dtype")] == [2.0, 7, 0.5, 3, "bfloat16"]
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "a.protocol.json"}  # no hidden folder is left
    assert read_samples(tmp_path) is None


def test_damaged_images_are_drawn_again(bundle, tmp_path, monkeypatch, capsys):
    """As a loss of power leaves them; those of another process are waited for, not joined as they are."""
    out, npz, whole = tmp_path / "drawn", tmp_path / "drawn.npz", tmp_path / "whole.npz"
    main(tiny(bundle, "--out-dir", str(out), "--npz", str(whole)))
    before = contents(out)

    def damage():
        paths = sorted(out.glob("*.png"))
        paths[0].write_bytes(b"")
        paths[3].write_bytes(before[paths[3].name][:-30])
        Image.new("RGB", (8, 9)).save(paths[6])
        paths[9].write_bytes(before[paths[9].name].replace(b"IDAT", b"IDAT\0"))

    damage()
    capsys.readouterr()
    main(tiny(bundle, "--out-dir", str(out)))
    assert "10 images, 4 of them drawn now" in capsys.readouterr().out
    assert contents(out) == before
    damage()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(job, "PATIENCE_SECONDS", 0)
    both = tiny(bundle, "--out-dir", str(out), "--npz", str(npz))
    with pytest.raises(SystemExit):
        main(both)  # batches 0, 2 and 4 are its own
    assert "2 of 5 batches are missing (images 2 to 3, images 6 to 7); see" in capsys.readouterr().err
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        main(both)
    assert contents(out) == before
    assert npz.read_bytes() == whole.read_bytes()


def test_an_image_that_cannot_be_joined_is_named(bundle, tmp_path, monkeypatch, refused):
    path = tmp_path / ".a.npz.parts" / "cat-000003.png"
    draw = SampleSet.draw

    def damaging(*arguments):
        written = draw(*arguments)
        path.write_bytes(b"")
        return written

    monkeypatch.setattr(SampleSet, "draw", damaging)
    (line,) = refused(*tiny(bundle, "--npz", str(tmp_path / "a.npz")))
    assert line == f"mvar: {path}: empty file; run the same command again, which draws it again"
    monkeypatch.undo()
    main(tiny(bundle, "--npz", str(tmp_path / "a.npz")))
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "a.protocol.json"}


@pytest.mark.parametrize("target", ["--out-dir", "--npz"])
def test_other_settings_do_not_go_on(bundle, tmp_path, refused, target):
    out, other = str(tmp_path / "a.npz"), shutil.copytree(bundle, tmp_path / "other")
    main(tiny(bundle, target, out))
    before = sorted(tmp_path.rglob("*"))
    weights = other / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    for changed, message in {
        ("--seed", "1", "--guidance", "2", "--top-k", "3"): (("guidance", 2.0, 1.5), ("seed", 1, 0), ("top_k", 3, 900)),
        ("--dtype", "bfloat16", "--batch-size", "3"): (("batch_size", 3, 2), ("dtype", "bfloat16", "float32")),
        ("--per-class", "6"): (("counts", [6, 6], [5, 5]),),
    }.items():
        field = target[2:].replace("-", "_")
        assert sorted(refused(*tiny(bundle, target, out), *changed)) == [
            f"mvar: {name} = {now!r}: {field} = {out!r} was started with {before!r}; "
            f"give the same settings, or another {field}"
            for name, now, before in message
        ]
    (line,) = refused(*tiny(bundle, target, out), "--model", str(other))
    assert line.startswith("mvar: sha256.generator.safetensors = ")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_does_not_go_with_a_protocol_is_refused(bundle, tmp_path, refused):
    sample = ["sample-set", "--model", bundle]
    folder, file = tmp_path / "mine", tmp_path / "mine.npz"
    folder.mkdir()
    Path(tmp_path, ".gone.npz.parts").mkdir()
    for path in (folder / "mine.png", file):
        path.write_bytes(b"mine")
    out_dir = ["--out-dir", str(tmp_path / "new")]
    for arguments, message in (
        ([], "out_dir, npz: give at least one of them"),
        ([*out_dir, "--per-class", "0"], "per_class = 0: must lie in 1 to 1,000,000"),
        ([*out_dir, "--smooth"], "smooth = True: is for looks and never for metrics; give --smooth=false"),
        (["--npz", str(tmp_path / "a.npy")], f"npz = {str(tmp_path / 'a.npy')!r}: give a name that ends in .npz"),
        (["--out-dir", str(folder)], f"out_dir = {str(folder)!r}: already exists, and no protocol.json says how it was"
                                     " made; give a new name"),
        *((["--npz", str(path)], f"npz = {str(path)!r}: already exists, and no protocol.json says how it was made; "
                                 "give a new name") for path in (file, tmp_path / "gone.npz")),
    ):  # fmt: skip
        assert refused(*sample, *arguments) == [f"mvar: {message}"]
    assert {path.name for path in tmp_path.rglob("*.*")} == {"mine.png", "mine.npz", ".gone.npz.parts"}


def test_images_of_a_protocol_are_not_replaced_by_others(bundle, tmp_path, refused):
    out, npz = str(tmp_path / "drawn"), str(tmp_path / "drawn.npz")
    main(tiny(bundle, "--out-dir", out))
    (tmp_path / "drawn.protocol.json").write_text("{}")  # begun by another process, and not yet drawn
    before = contents(out)
    for command in ("sample", "sample-best"):
        assert refused(command, "--model", bundle, "--seed", "1", "--out-dir", out, "--npz", npz) == [
            f"mvar: out_dir = {out!r}: protocol.json there belongs to mvar sample-set; give a new name",
            f"mvar: npz = {npz!r}: drawn.protocol.json there belongs to mvar sample-set; give a new name",
        ]
    assert contents(out) == before
    assert not Path(npz).exists()


def test_processes_divide_the_images_alike_whatever_memory_each_has(bundle, tmp_path, monkeypatch):
    out = str(tmp_path / "drawn")
    monkeypatch.setattr(job, "PATIENCE_SECONDS", 0)
    for rank, fitting in ((1, 3), (0, 5)):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr(model, "fitting_batch", lambda *_, fitting=fitting: fitting)
        main(["sample-set", "--model", bundle, "--out-dir", out])
    assert len(contents(out)) == 101
    assert facts(out)["batch_size"] == 64


def test_who_comes_late_does_not_draw_what_is_joined(bundle, tmp_path, monkeypatch):
    npz, begin, save, batches = tmp_path / "a.npz", SampleSet.begin, protocol.save_pngs, []

    def late(asked):
        begin(asked)
        monkeypatch.setattr(SampleSet, "begin", begin)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
        main(tiny(bundle, "--npz", str(npz)))  # the others, who had everything
        asked.folder.mkdir()

    monkeypatch.setattr(SampleSet, "begin", late)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(protocol, "save_pngs", lambda *arguments: batches.append(0) or save(*arguments))
    main(tiny(bundle, "--npz", str(npz)))
    assert len(batches) == 5  # each once
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "a.protocol.json"}


def test_a_model_without_classes_draws_one_kind(bundle, tmp_path):
    loaded = model.load(bundle)
    one = replace(loaded.generator.config, num_classes=0)
    plain = Generator(one).eval()
    initialise(plain, seed=0)
    model.Model(loaded.tokenizer, plain).save(tmp_path / "plain")
    main(tiny(str(tmp_path / "plain"), "--npz", str(tmp_path / "a.npz")))
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["arr_0"].shape == (5, 8, 8, 3)
        assert arrays["arr_1"].tolist() == [0] * 5
    assert facts(tmp_path / "a.npz")["classes"] == ["no class"]
