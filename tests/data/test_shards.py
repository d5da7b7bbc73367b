import gzip
import json
import os
import re

import pytest
import torch
import webdataset

from mvar.data.images.folders import ImageFolder
from mvar.data.shards import local as shards
from mvar.data.shards.local import ShardSet, expand
from mvar.data.source import PixelSource
from mvar.data.splits import open_splits


def source(*paths, **options):
    return PixelSource.read(ShardSet.scan(list(paths)), (8, 8), **options)


def keys(source):
    return [path.key for path in source.paths]


# --- what a shard holds ---


def test_shards_give_the_images_and_labels_that_webdataset_reads(three_shards, tmp_path):
    files = [tmp_path / "shards" / f"train-{i}.tar" for i in range(3)]
    theirs = [sample for file in files for sample in webdataset.WebDataset(f"pipe:cat {file}", shardshuffle=False)]
    folder = tmp_path / "folder"
    for sample in theirs:
        (folder / sample["cls"].decode()).mkdir(parents=True, exist_ok=True)
        (folder / sample["cls"].decode() / f"{sample['__key__']}.png").write_bytes(sample["png"])
    plain = PixelSource.read(ImageFolder.scan(folder), (8, 8), seed=3)
    order = sorted(range(24), key=lambda i: plain.paths[i].stem)
    for cache_bytes in (0, 2**30):
        packed = source(*files, cache_bytes=cache_bytes, seed=3)
        assert keys(packed) == [sample["__key__"] for sample in theirs]
        assert packed.classes == plain.classes == ["0", "1", "2", "3"]
        mine, theirs_too = packed.batch(range(24)), plain.batch(order)
        assert all(map(torch.equal, mine, theirs_too))
    assert packed.name(9) == f"{files[1]}/009.png"


def test_classes_come_from_a_list_or_from_the_labels(write_shard, picture, tmp_path):
    nothing = ShardSet.scan([write_shard(tmp_path / "bare.tar", {str(i): {"png": picture(i)} for i in range(3)})])
    assert (nothing.classes, nothing.labels) == ([], [0, 0, 0])
    samples = {
        "a/one": {"png": picture(0), "cls": b"dog"},
        "a/two": {"jpg": picture(1, kind="JPEG"), "json": {"label": "cat 10"}},
        "b/two": {"json": {"label": "cat 9"}, "webp": picture(2, kind="WEBP")},
    }
    path = write_shard(tmp_path / "0.tar", samples)
    found = ShardSet.scan([path])
    assert [(member.key, member.width, member.height) for member in found.paths] == [(key, 20, 16) for key in samples]
    assert (found.classes, found.labels) == (["cat 9", "cat 10", "dog"], [2, 1, 0])

    (tmp_path / "classes.txt").write_text("dog\ncat  10\nbird\ncat 9\n")
    with pytest.warns(UserWarning, match=r"^data: 1 of 4 classes have no images: 'bird'$"):
        found = ShardSet.scan([path])
    assert (found.classes, found.labels) == (["dog", "cat 10", "bird", "cat 9"], [0, 1, 3])
    (tmp_path / "classes.txt").write_text("dog\ncat 10\n")
    with pytest.raises(ValueError, match=r"^data: '.*0\.tar/b/two\.webp' has label 'cat 9', which is none of the 2"):
        ShardSet.scan([path])


def test_validation_names_match_without_case(write_shard, picture, tmp_path, recwarn):
    for name in ("Cat", "Dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "a.png").write_bytes(picture(0))
    samples = {str(i): {"png": picture(i), "cls": name} for i, name in enumerate(["cat", "DOG", "Cat"])}
    path = write_shard(tmp_path / "val" / "0.tar", samples)
    for listed in ("", "CAT\ndog\n"):
        if listed:
            (path.parent / "classes.txt").write_text(listed)
        _, val = open_splits(tmp_path / "photos", (8, 8), val_data=path)
        assert (val.classes, val.labels.tolist()) == (["Cat", "Dog"], [0, 1, 0])
    (path.parent / "classes.txt").write_text("Dog\nCat\n")  # in another order, numbers would mean other classes
    with pytest.raises(ValueError, match="lists other classes than the training set"):
        open_splits(tmp_path / "photos", (8, 8), val_data=path)
    both = ShardSet.scan([write_shard(tmp_path / "0.tar", {n: {"png": picture(0), "cls": n} for n in ("Cat", "cat")})])
    assert (both.classes, both.labels, recwarn.list) == (["Cat", "cat"], [0, 1], [])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, "cat"], "all a number or all a name: '.*/0.png' has 1 and '.*/1.png' has 'cat'; fix"),
        ([1, None], "all a number or all a name: '.*/0.png' has 1 and '.*/1.png' has None; fix"),
        ([0, 1, 999], r"^data: '.*0\.tar/2\.png' has label 999, far more than the 3 images; fix"),
    ],
)
def test_labels_that_make_no_classes_are_refused(write_shard, picture, tmp_path, labels, message):
    samples = {str(i): {"png": picture(i), "json": {"label": label}} for i, label in enumerate(labels)}
    path = write_shard(tmp_path / "0.tar", samples)
    with pytest.raises(ValueError, match=message):
        ShardSet.scan([path])
    if 999 in labels:
        (tmp_path / "classes.json").write_text(json.dumps([f"class {i}" for i in range(1000)]))
        with pytest.warns(UserWarning, match=r"997 of 1,000 classes have no images: 'class 2', .* and 992 more$"):
            assert ShardSet.scan([path]).labels == labels


def test_images_and_labels_that_are_not_packed_together_are_refused(write_tar, picture, tmp_path):
    members = [("a.png", picture(0)), ("b.png", picture(1)), ("b.cls", b"1"), ("a.cls", b"0")]
    said = r"^data: '.*a\.cls' has no image beside it, and '.*a\.png' no label; pack each"
    with pytest.raises(ValueError, match=said):
        ShardSet.scan([write_tar(tmp_path / "0.tar", members)])


def test_ranges_in_braces():
    assert expand("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand("{0..1}/{1..2}") == ["0/1", "0/2", "1/1", "1/2"]
    assert expand("a{b}.tar") == ["a{b}.tar"]
    with pytest.raises(ValueError, match=r"\{3\.\.1\} counts down"):
        expand("{3..1}")


# --- the index ---


def test_a_shard_is_read_through_once_until_it_changes(write_shard, picture, tmp_path, monkeypatch):
    path = write_shard(tmp_path / "0.tar", {str(i): {"png": picture(i), "cls": i} for i in range(3)})
    first = ShardSet.scan([path])
    assert (tmp_path / "0.tar.index.json").is_file()

    def unused(*_, **__):
        raise AssertionError("the shard is read again")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "samples", unused)
        patch.setattr("mvar.data.reading.decode", unused)
        patch.setattr("mvar.data.source.decode", unused)
        assert ShardSet.scan([path]) == first
        assert len(source(path, cache_bytes=0)) == 3  # not even to find the bad ones
    write_shard(path, {str(i): {"png": picture(9 + i), "cls": i} for i in range(4)})
    assert len(ShardSet.scan([path]).paths) == 4
    for damage in ('{"version": 4, "sam', "[]", '{"samples": [[1]]}'):
        (tmp_path / "0.tar.index.json").write_text(damage)
        assert len(ShardSet.scan([path]).paths) == 4
    os.utime(path, ns=(1, 1))  # the same size at another time
    with monkeypatch.context() as patch:
        patch.setattr(shards, "samples", unused)
        with pytest.raises(AssertionError, match="read again"):
            ShardSet.scan([path])


def test_where_the_folder_cannot_be_written_the_index_goes_to_the_cache(write_shard, picture, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_shard(tmp_path / "0.tar", {"0": {"png": picture(0)}})
    (tmp_path / "0.tar.index.json").mkdir()  # in the way, whoever runs this
    first = ShardSet.scan([path])
    assert len(list((tmp_path / "cache" / "mvar" / "shards").iterdir())) == 1
    monkeypatch.setattr(shards, "samples", None)
    assert ShardSet.scan([path]) == first


# --- damage ---


def test_shards_that_are_none(tmp_path, write_shard):
    (tmp_path / "packed.tar").write_bytes(gzip.compress(bytes(10_240)))
    write_shard(tmp_path / "none.tar", {"a": {"txt": "text"}})
    for name, message in {
        "packed": "is no plain .tar file",
        "none": r"holds no images; give shards with members KEY\.png",
        "missing": "does not exist",
        "m-{0..5}": r"m-0.tar' does not exist; give the names of \.tar files",
    }.items():
        with pytest.raises(ValueError, match=f"^data[^\n]*{message}[^\n]*$"):
            open_splits(tmp_path / f"{name}.tar", (8, 8))


def test_bad_members_are_reported_like_bad_files(write_shard, picture, tmp_path):
    samples = {
        "good": {"png": picture(0), "cls": 0},
        "cut": {"png": picture(1)[:300], "cls": 1},
        "alone": {"cls": 1},
        "empty": {"png": b"", "cls": 1},
        "odd": {"png": picture(2), "json": b"{"},
        "last": {"png": picture(3), "cls": 1},
    }
    bad = {
        "cut.png": "truncated",
        "alone.cls": "has no image of a kind that is read, only .cls",
        "empty.png": "empty file",
        "odd.png": "its .json",
    }
    path = write_shard(tmp_path / "0.tar", samples)
    for cache_bytes in (2**30, 0):
        with pytest.warns(UserWarning, match=r"^4 of 6 images in .* cannot be used:\n") as caught:
            read = source(path, cache_bytes=cache_bytes)
        _, *lines = str(caught[0].message).splitlines()
        for line, (name, reason) in zip(lines, bad.items(), strict=True):
            assert re.match(f"  '0.tar/{name}': .*{reason}", line), line
        assert keys(read) == ["good", "last"]
        assert read.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"'0.tar/cut.png': .*truncated"):
        source(path, on_bad_image="error")


def test_a_shard_that_breaks_later_is_named_with_the_member(write_shard, picture, tmp_path):
    path = write_shard(tmp_path / "0.tar", {str(i): {"png": picture(i)} for i in range(6)})
    read = source(path, cache_bytes=0)
    os.truncate(path, 3000)
    with pytest.raises(ValueError, match=r"0\.tar/5\.png' was readable before and is not now: the shard is cut short"):
        read.batch([5])


# --- splits and order ---


def test_train_and_val_shards_share_their_classes(three_shards, write_shard, picture, tmp_path):
    write_shard(tmp_path / "shards" / "val-0.tar", {"v": {"png": picture(99), "cls": 1}})
    with pytest.warns(UserWarning, match="3 classes without validation images, trained all the same: 0, 2, 3"):
        train, val = open_splits(tmp_path / "shards", (8, 8))
    assert (len(train), keys(val), val.labels.tolist()) == (24, ["v"], [1])
    assert train.classes == val.classes == ["0", "1", "2", "3"]
    write_shard(tmp_path / "shards" / "val-0.tar", {f"v{i}": {"png": picture(99), "cls": i} for i in (3, 4)})
    with (
        pytest.warns(UserWarning, match="leaves out 1 image of classes that the training images lack: 4$"),
        pytest.warns(UserWarning, match="3 classes without validation images"),
    ):
        assert open_splits(tmp_path / "shards", (8, 8))[1].labels.tolist() == [3]
    write_shard(tmp_path / "shards" / "val-0.tar", {"v": {"png": picture(99), "cls": 4}})
    with pytest.raises(ValueError, match=r"shards': has labels 4, the training images are of 0, 1, 2, 3; correct"):
        open_splits(tmp_path / "shards", (8, 8))


def test_without_val_shards_a_share_is_held_out_by_key(three_shards, write_shard, picture, tmp_path):
    train, val = open_splits(three_shards, (8, 8))
    assert sorted(keys(train) + keys(val)) == [f"{i:03d}" for i in range(24)]
    assert sorted(val.labels.tolist()) == [0, 1, 2, 3]
    backwards = {f"{i:03d}": {"png": picture(i), "cls": i % 4} for i in reversed(range(24))}
    write_shard(tmp_path / "other" / "all.tar", backwards)
    assert set(keys(open_splits(tmp_path / "other", (8, 8))[1])) == set(keys(val))
