"""Layouts of folders that people have: each is understood, with the right classes and splits, or refused in a line."""

import os
import re
import sys

import pytest

from mvar.data.images.folders import ImageFolder
from mvar.data.splits import open_splits

TWO = ("cat", "dog")


@pytest.fixture
def lay(picture, tmp_path):
    """Makes a folder of images, by their names; a name with an arrow is a link, one that ends in "/" a folder."""
    content = picture(0)

    def make(*names):
        root = tmp_path / "d"
        root.mkdir()
        for name in names:
            path = root / name.partition(" -> ")[0]
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if " -> " in name:
                path.symlink_to(name.partition(" -> ")[2])
            elif not name.endswith("/"):
                path.write_bytes(content)
        return root

    return make


def of(split, n, *classes):
    """Names of n images of each class."""
    return [f"{split}/{name}/{i}.png" for name in classes or TWO for i in range(n)]


def inside(root, source):
    return [os.path.relpath(path, root) for path in source.paths]


# --- splits ---


def test_validation_on_the_training_images_is_told(lay):
    root = lay(*of("train", 3), "link -> train")
    with pytest.warns(UserWarning, match=r"^val_data = '.*link': holds the training images themselves"):
        train, val = open_splits(root / "train", (8, 8), val_data=root / "link")
    assert len(train) == len(val) == 6


USUAL = [("train", "validation"), ("Train", "VAL"), ("training", "Testing"), ("train2017", "val2017")]
USUAL += [("TrainSet", "dev_set"), ("trainval", "test"), ("img_train", "img_valid"), ("TrainImages", "TestImages")]
USUAL += [("fashion train images", "fashion eval images"), ("traindata", "testdata"), ("RGBTrain", "RGBTest")]


@pytest.mark.parametrize(("train", "val"), USUAL)
def test_the_usual_names_of_splits_are_understood_by_training_and_refused_elsewhere(lay, train, val):
    root = lay(*of(train, 3), *of(val, 1))
    sources = open_splits(root, (8, 8))
    assert [inside(root, source) for source in sources] == [of(train, 3), of(val, 1)]
    assert [source.classes for source in sources] == [["cat", "dog"]] * 2
    with pytest.raises(ValueError, match=f"^reference = '[^\n]*d': is split into {train} and {val}; give one of them"):
        ImageFolder.scan(root, "reference")


@pytest.mark.parametrize(
    ("names", "used", "ignored"),
    [
        ([*of("train", 1), *of("val", 1), *of("test", 1), *of("Train extras", 1), "a.png", "x/", ".git/", "b.txt"],)
        + ("train/, val/", "test/, Train extras/, x/, 1 image"),
        (["trainset/0.png", "testset/0.png", "more/0.png", "0.tar"], "trainset/, testset/", "more/, 1 shard"),
        (["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "cat.tar", "dog.tar"], "images", "2 shards"),
    ],
)
def test_what_lies_beside_the_splits_is_named(lay, names, used, ignored):
    with pytest.warns(UserWarning, match=f"d': uses {used} and ignores {ignored}$") as caught:
        open_splits(lay(*names), (8, 8))
    assert len(caught) == 1


def test_what_val_data_replaces_is_ignored(lay, shards, recwarn):
    root = lay(*of("train", 2), *of("val", 1), *of("test", 1), *of("more/train", 1), *of("more/valid", 1))
    assert inside(root, open_splits(root, (8, 8), val_data=root / "test")[1]) == of("test", 1)
    assert inside(root, open_splits(root / "train", (8, 8), val_data=root / "more")[1]) == of("more/valid", 1)
    shards("train-0.tar", "val-0.tar")
    open_splits(root.parent / "s", (8, 8), val_data=root.parent / "s" / "val-0.tar")
    assert [str(warning.message).replace(str(root.parent), "") for warning in recwarn] == [
        "data = '/d': uses train/ and ignores more/, test/, val/",
        "val_data = '/d/more': uses valid/ and ignores train/",
        "data = '/s': uses train-0.tar and ignores val-0.tar",
    ]


CLASSES = {
    "breeds of each class": ["cat/siamese/0.png", "cat/other/0.png", "dog/poodle/0.png", "dog/other/0.png"],
    "one folder in each": ["cat/images/0.png", "cat/images/1.png", "dog/images/0.png", "dog/images/1.png"],
    "images beside folders": ["cat/0.png", "cat/old/0.png", "dog/0.png", "dog/old/0.png"],
    "NAS": [*of(".", 2), "@eaDir/0.png", "cat/@eaDir/0.png/THUMB.jpg", "__MACOSX/cat/0.png", "dog/._0.png"]
    + ["#Recycle/0.png", "$RECYCLE.BIN/0.png", "System Volume Information/0.png", "lost+found/0.png"],
    "other suffixes": ["cat/0.JFIF", "cat/1.jpe", "dog/0.webp", "dog/1.Jpeg", "dog/notes.txt"],
    "spaces": ["cat/0.png", "cat /1.png", " dog/0.png", "dog\ufeff/1.png"],
    "hidden links": ["cat/0.png", "cat/more -> ../.store", ".store/1.png", "dog/0.png", "dog/1.png"],
    "links in circles": [*of(".", 2), "cat/a -> .", "cat/b -> ../..", "dog/a -> ../dog"],
}


@pytest.mark.parametrize("name", CLASSES)
def test_folders_that_are_classes(lay, name):
    found = ImageFolder.scan(lay(*CLASSES[name]))
    assert (found.classes, found.labels) == (["cat", "dog"], [0, 0, 1, 1])


OTHER_CLASSES = [
    (["cat -> store", ".s/0.png", "store -> .s", "cat2/0.png"], ["cat", "cat2", "store"]),
    ([*(f"{name}/0.png" for name in ("\u00e9", "z", "B", "a"))], ["a", "B", "z", "\u00e9"]),
    ([*(f"{name}/0.png" for name in ("e\u0301", "z", "B", "a"))], ["a", "B", "z", "\u00e9"]),
    (["b.png", "a.png"], []),
    (["only class/b.png", "only class/a.png"], []),
]


@pytest.mark.parametrize(("names", "classes"), OTHER_CLASSES)
def test_classes_are_sorted_and_one_is_none(lay, names, classes):
    found = ImageFolder.scan(lay(*names))
    assert (found.classes, found.labels) == (classes, list(range(len(classes))) or [0, 0])
    assert classes or [path.name for path in found.paths] == ["a.png", "b.png"]


@pytest.mark.parametrize("others", [["dog"], []])
def test_a_folder_that_may_be_either_of_two_classes_is_refused(lay, others):
    root, classes = lay("CAT/1.png", *(f"{name}/1.png" for name in others)), ["cat", "Cat", "dog"]
    with pytest.raises(ValueError, match=r"': the class CAT may be cat or Cat of the training images; rename the fold"):
        ImageFolder.scan(root, classes=classes)
    (root / "CAT").rename(root / "Cat")
    assert ImageFolder.scan(root, classes=classes).labels == [1, *[2 for _ in others]]


def test_folders_of_the_same_names_in_each_class_belong_to_it(lay, recwarn):
    root = lay(*of("train/alice", 2, "day1", "day2"), *of("train/bob", 2, "day1", "day2"), *of("val/bob", 1, "day1"))
    train, val = open_splits(root, (8, 8))
    assert [str(warning.message).replace(str(root), "d") for warning in recwarn] == [
        "data = 'd/train': alice/ and bob/ hold folders of the same names (day1, day2): taken for classes alice, bob",
        "data = 'd': 1 class without validation images, trained all the same: alice",
    ]
    assert (train.classes, train.labels.tolist(), val.labels.tolist()) == (["alice", "bob"], [0] * 4 + [1] * 4, [1])
    recwarn.clear()
    found = ImageFolder.scan(root / "train", classes=["bob", "alice"])
    assert (found.labels, recwarn.list) == ([0] * 4 + [1] * 4, [])


REFUSED = {
    "images/ holds folders (cat, dog) and is no class; give 'D/images'": of("images", 1),
    "data/ holds folders (train, val) and is no class; give 'D/data'": [*of("data/train", 1), *of("data/val", 1)],
    "a/ holds folders (cat, dog) and is no class; give 'D/a/b'": of("a/b", 1),
    "train/ holds folders (cat, dog) and is no class; give 'D/train'": [*of("train", 1), "unlabelled/0.png"],
    "fold1/ and fold2/ hold folders of the same names (cat, dog), as parts of one set do; give one of": [
        *of("fold1", 1, "cat", "dog", "eel"),
        *of("fold2", 1),
    ],
    **{
        f"{a}/ and {b}/ hold folders of the same names (cat, dog), as": [*of(a, 1), *of(b, 1)]
        for a, b in (("Part A", "Part B"), ("split0", "the rest"), ("cv_1", "cv_2"), ("myTrain", "x"))
    },
    "cat/ is split into train and val; put the classes into the splits, as train/cat/, not the": [
        *of("cat", 1, "train", "val"),
        "dog/0.png",
    ],
    "is split into val and test; give one of them": ["val/0.png", "test/0.png"],
    "is split into trainA, trainB, testA and testB; give one of them, such as 'D/trainA'": [
        f"{name}/0.png" for name in ("trainA", "trainB", "testA", "testB")
    ],
    "the folder ' ' has nothing but spaces for a name; rename it": [" /0.png", "cat/0.png"],
    "holds no images but 3 files of other kinds (2 .gif, 1 without suffix); put": ["a/0.gif", "b/0.GIF", "b/c"],
    "holds no images; put .png .jpg .jpeg .jpe .jfif .webp files": ["empty/"],
    "holds 1 image beside 1 class folder; move them": ["0.png", "class/0.png"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_folders_that_are_no_classes(lay, message):
    root = lay(*REFUSED[message])
    with pytest.raises(
        ValueError, match=f"^samples = '{root}': " + re.escape(message.replace("D/", f"{root}/"))
    ) as error:
        ImageFolder.scan(root, "samples")
    assert "\n" not in str(error.value)


ONE_LINE = {
    "d': leaves no validation images out of 1 readable image; add images": ["0.png"],
    "d/val': holds no images": [*of("train", 1), "val/"],
    "d': has validation images only (D/val); give those as data": [*of("val", 1), "train -> nowhere"],
    "d': has several folders for one part, trainA/, trainB/; move all but one away": [
        f"{name}/0.png" for name in ("trainA", "trainB", "testA", "testB")
    ],
    "d/train': train/ holds folders (cat, dog) and is no class": [*of("train/train", 1), *of("val/val", 1)],
    "d/val': has classes (cat, dog), the training images have none; sort those": ["train/0.png", *of("val", 1)],
    "d/val': holds images without classes, the training images are of cat, dog; give": [*of("train", 1), "val/0.png"],
    "d/val': holds eel, fox, the training images are of cat, dog; give": [*of("train", 1), *of("val", 1, "eel", "fox")],
}


@pytest.mark.parametrize("message", ONE_LINE)
def test_training_and_validation_that_do_not_fit(lay, message):
    root = lay(*ONE_LINE[message])
    with pytest.raises(ValueError, match=re.escape(message.replace("D/", f"{root}/"))) as error:
        open_splits(root, (8, 8))
    assert str(error.value).startswith("data = ")
    assert "\n" not in str(error.value)


def test_a_class_may_be_called_train(lay):
    root = lay(*of("a/train", 2, "bus", "train"), *of("a/val", 1, "bus", "train"), *of("b", 1, "bus", "car", "train"))
    assert open_splits(root / "a", (8, 8))[0].classes == ["bus", "train"]
    with pytest.warns(UserWarning, match="taken for classes, not for splits: train; move away those that are none"):
        assert ImageFolder.scan(root / "b").classes == ["bus", "car", "train"]


def test_images_of_other_kinds_are_counted_in_one_warning(lay, recwarn):
    other = ["cat/a.gif", "cat/b.GIF", "dog/c.tiff", "dog/d.jpg_large", "dog/e -> gone"]
    root = lay(*of(".", 1), *other, "dog/f.txt", "LICENSE", "empty/")
    assert len(ImageFolder.scan(root).paths) == 2
    warning, empty = recwarn
    assert str(empty.message).endswith("folders without images are no classes: empty")
    said = re.search(r"ignores 5 files of other kinds \((.*)\); convert what you need to PNG$", str(warning.message))
    assert sorted(said[1].split(", ")) == ["1 .jpg_large", "1 .tiff", "1 broken link", "2 .gif"]


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere do not keep the two apart")
def test_names_that_differ_in_form_are_one_class_and_other_bytes_are_not(lay, picture):
    root = lay("caf\u00e9/0.png", "cafe\u0301/1.png", "x/0.png")
    for name in (b"\xe8", b"\xe9"):  # of another encoding
        os.mkdir(os.path.join(os.fsencode(root), name))
        with open(os.path.join(os.fsencode(root), name, b"0.png"), "wb") as file:
            file.write(picture(0))
    found = ImageFolder.scan(root)
    assert found.classes == ["\\xe8", "\\xe9", "caf\u00e9", "x"]
    assert found.labels == [0, 1, 2, 2, 3]


def test_a_folder_that_cannot_be_listed_is_named(lay, monkeypatch):
    root = lay(*of(".", 1), "dog/deep/0.png")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(ValueError, match=r"^data = '.*d': '.*/dog/deep' cannot be listed \(Permission denied\); give"):
        ImageFolder.scan(root)
    for name, problem in {
        "d" * 300: r"'d*' cannot be listed \(File name too long\); give",
        str(root / "missing"): "does not exist; give a folder",
        str(root / "cat" / "0.png"): "is a file; give a folder",
    }.items():
        with pytest.raises(ValueError, match=f"^data = '{name}': {problem}"):
            open_splits(name, (8, 8))


# --- classes of training and validation ---


def test_classes_without_validation_images_are_trained_and_those_without_training_images_left_out(lay, recwarn):
    root = lay(*of("train", 2, "ant", "bee", "Cat"), *of("val", 1, "cat ", "dog"), *of("other", 1, "bee"))
    train, val = open_splits(root, (8, 8))
    assert [str(warning.message).replace(str(root), "d") for warning in recwarn] == [
        "data = 'd': uses train/, val/ and ignores other/",
        "data = 'd/val': leaves out 1 image of classes that the training images lack: dog",
        "data = 'd': 2 classes without validation images, trained all the same: ant, bee",
    ]
    assert train.classes == val.classes == ["ant", "bee", "Cat"]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (inside(root, val), val.labels.tolist()) == (["val/cat /0.png"], [2])
    with pytest.warns(UserWarning, match=r"2 classes without validation images, trained all the same: ant, Cat"):
        train, val = open_splits(root / "train", (8, 8), val_data=root / "other")  # one class folder alone
    assert (train.classes, val.classes, val.labels.tolist()) == (["ant", "bee", "Cat"], ["ant", "bee", "Cat"], [1])


# --- shards ---


@pytest.fixture
def shards(write_shard, picture, tmp_path):
    """Writes shards of two images each, with these labels."""

    def write(*names, labels=("a", "b")):
        for name in names:
            stem = os.path.basename(name).partition(".")[0]
            samples = {f"{stem}{i}": {"png": picture(i), "cls": label} for i, label in enumerate(labels)}
            write_shard(tmp_path / "s" / name, samples)
        return tmp_path / "s"

    return write


@pytest.mark.parametrize(
    ("train", "val", "unused"),
    [
        ("Train-000.TAR", "Validation_0.tar", None),
        ("train/0.tar", "val/0.tar", None),
        ("imagenet-train-0.tar", "imagenet-val-0.tar", "imagenet-test-0.tar"),
        ("train.tar", "dev1.tar", "trainer.tar"),
    ],
)
def test_the_splits_of_shards_are_told_by_words_of_their_names(shards, train, val, unused):
    root = shards(train, val, *filter(None, [unused]))
    if unused:
        with pytest.warns(UserWarning, match=f"uses {train}, {val} and ignores {unused}$"):
            sources = open_splits(root, (8, 8))
    else:
        sources = open_splits(root, (8, 8))
    assert [{path.shard for path in source.paths} for source in sources] == [{root / train}, {root / val}]


def test_shards_that_are_no_training_shards_by_their_names(shards):
    root = shards("val-0.tar")
    with pytest.raises(ValueError, match=r"^data = '.*s': has validation images only \(.*/s/val-0.tar\); give those"):
        open_splits(root, (8, 8))
    shards("more-0.tar")
    with pytest.raises(
        ValueError, match=r"'val-0.tar' is for validation by its name, 'more-0.tar' has no name of a sp"
    ):
        open_splits(root, (8, 8))
    trainer = shards("x/trainer-0.tar", "x/trainee-1.tar") / "x"
    assert open_splits(trainer, (8, 8), val_data=root / "val-0.tar")[0].labels.tolist() == [0, 1, 0, 1]
