"""Icons of an excerpt of the npm package: 110 real ones of 39 sets, each set with its author and licence."""

import copy
import hashlib
import json
import os
import re
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest

from mvar.checkpoint.hub import packaged_root
from mvar.cli import main
from mvar.data.sets import iconify as rules
from mvar.data.sets import icons as module
from mvar.data.sets.fetching import VERSION
from mvar.data.sets.iconify import is_wanted, read_sets
from mvar.data.sets.icons import icons
from mvar.data.splits import open_splits

EXCERPT = json.loads((Path(__file__).parent / "icons-excerpt.json").read_text(encoding="utf-8"))
DOCS = Path(__file__).parents[2] / "docs"
# Of all files that the excerpt gives: paths and bytes.
SHA256 = "be7bbb473ae92f80650efeeb90a63eef2e6372d1f24028be187ee85c190c8556"
SET, ICON = "json/bi.json", {"body": "<path/>"}


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


@pytest.fixture
def files():
    """The package's files by name, to be changed."""
    return copy.deepcopy(EXCERPT)


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "package", EXCERPT)


@pytest.fixture
def written(files, tmp_path):
    """Writes the icons of the changed files; returns (split, concept) by "set name"."""

    def run(**options):
        out = tmp_path / "icons"
        icons(str(out), 16, source=write(tmp_path / "package", files), **options)
        return {path.stem.replace("_", " "): path.parts[-3:-1] for path in out.rglob("*.png")}

    return run


def digest(folder):
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(
            f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return found.hexdigest()


@pytest.mark.parametrize("few", [1000, 0])
def test_the_same_package_gives_the_same_files(source, tmp_path, monkeypatch, few):
    monkeypatch.setattr(module, "in_processes", partial(module.in_processes, processes=2, few=few))
    counts = icons(str(tmp_path / "icons"), source=source)
    assert digest(tmp_path / "icons") == SHA256
    assert (counts.total(), counts["vaadin", "val", "bell"]) == (72, 1)
    train, val = open_splits(tmp_path / "icons", (64, 64), resize_factor=1.0)
    assert train.classes == val.classes == ["anchor", "bell", "mars"]
    assert (len(train), len(val)) == (65, 7)
    assert train.batch([0])[0].unique().numel() > 2  # smooth edges


def test_each_picture_is_there_once_in_its_concept_and_part(written):
    found = written()
    assert found["mynaui male"] == found["fa mars"] == ("train", "mars")  # named for a man, looks like the sign
    assert found.keys().isdisjoint(
        ["carbon anchor", "ph gender-male-fill"]  # wrong
        + ["ph gender-male-bold"]  # another weight of a wrong one
        + ["bi bell-fill", "uil anchor", "uil mars"]  # drawn before, the last by a wrong one
        + ["uis anchor", "whh bell"]  # near to a training image
        + ["lucide venus", "reicon woman"]  # of too small a concept
    )
    held_out = {name.split()[0] for name, (split, _) in found.items() if split == "val"}
    assert held_out == {"grommet-icons", "iconoir", "la", "system-uicons", "uit", "vaadin"}


def test_a_validation_image_that_is_trained_on_as_another_concept_is_left_out(files, written):
    box = {"width": 24, "height": 24}
    for ours, theirs in (("vaadin", "mynaui"), ("system-uicons", "uit")):  # of a designer for training, of one held out
        files[f"json/{ours}.json"]["icons"]["bells"] = files[f"json/{theirs}.json"]["icons"]["anchor"] | box
    found = written(concepts=" Bell,anchor ")
    assert "vaadin bells" not in found
    assert found["system-uicons bells"] == ("val", "bell")
    assert {concept for _, concept in found.values()} == {"anchor", "bell"}


def test_the_page_of_licences_says_what_the_package_says(files, written, tmp_path):
    files["json/uit.json"]["info"]["author"]["name"] = "One | Another\nThird"
    written()
    page = (tmp_path / "icons" / "LICENCES.md").read_text(encoding="utf-8")
    assert "@iconify/json 9.8.7" in page
    licence = "[MIT (MIT)](https://github.com/box-icons/boxicons-core/blob/main/LICENSE)"
    author = "[Boxicons](https://github.com/box-icons/boxicons-core)"
    assert f"\n| boxicons | Boxicons | {author} | {licence} | 1.0.5 | 2 | train |\n" in page
    assert re.search(r"\n\| jam \| Jam Icons \| .* \| not given \| 4 \| train \|\n", page)
    assert "| [One / Another Third](" in page
    assert "| icon-park-outline |" not in page  # no image is theirs


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ("bell,ancor", r"concepts = 'bell,ancor': no concept 'ancor'; close: anchor$"),
        (" , ", r"concepts = ' , ': names no concept; leave it out for all$"),
        (
            "bell,venus,cat",
            "concepts = 'bell,venus,cat': too few icons of cat, venus: a concept needs 10 sets that draw",
        ),
    ],
)
def test_concepts_that_cannot_be_had(source, tmp_path, concepts, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        icons(str(tmp_path / "icons"), concepts=concepts, source=source)
    assert not (tmp_path / "icons").exists()


def test_a_size_out_of_range_and_a_missing_library_are_named(source, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"^size = 7: must lie in 8 to 1,024"):
        icons(str(tmp_path / "icons"), 7, source=source)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match=re.escape('icons: drawing needs resvg-py; pip install "mvar-torch[icons]"')):
        icons(str(tmp_path / "icons"), source=source)


# --- the package ---


def test_sets_are_wanted_by_licence_colour_and_kind():
    mit = {"license": {"spdx": "MIT"}, "palette": False}
    assert is_wanted("a-set", mit)
    assert not any(is_wanted("a-set", mit | {"license": {"spdx": spdx}}) for spdx in ("CC-BY-4.0", "GPL-3.0", None))
    assert not is_wanted("a-set", mit | {"palette": True})
    assert not is_wanted("simple-icons", mit)


def test_hidden_and_turned_icons_are_not_read(files, tmp_path):
    hidden = ({"hidden": True}, {"rotate": 1}, {"hFlip": True}, {"vFlip": True})
    bells = {f"bell-{i}": ICON | options for i, options in enumerate(hidden)}
    files[SET]["icons"] = {"bell": ICON, "anchor": ICON | {"rotate": 0, "width": 20}, "cat": ICON, **bells}
    version, sets = read_sets(write(tmp_path, files), "", {"bell", "anchor"})
    assert version == "9.8.7"
    (anchor, bell) = next(found.icons for found in sets if found.prefix == "bi")
    assert (bell.concept, bell.name, bell.left, bell.width, bell.height) == ("bell", "bell", 0, 16, 16)
    assert (anchor.name, anchor.width, anchor.height) == ("anchor", 20, 16)


DAMAGED = {
    "package.json' is missing or damaged .*; give a whole copy of the npm": lambda files: files.clear(),
    "json/bi.json' is missing or damaged .*No such file": lambda files: files.pop(SET),
    "json/bi.json' is missing or damaged": lambda files: files[SET].pop("info"),
    "the icon bi:anchor cannot be drawn": lambda files: files[SET]["icons"].update(anchor={"body": "<g><path"}),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_damaged_packages_are_named(files, tmp_path, message):
    DAMAGED[message](files)
    source = write(tmp_path / "package", files)
    with pytest.raises(ValueError, match=f"^source[^\n]*{message}[^\n]*$"):
        icons(str(tmp_path / "icons"), source=source)
    assert not (tmp_path / "icons").exists()


def test_the_command_fetches_the_package(source, tmp_path, monkeypatch, capsys):
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
        tar.add(source, "package")
    tools = tmp_path / "tools"
    tools.mkdir()
    npm = tools / "npm"
    npm.write_text(f'#!/bin/sh\necho "$1 $2" >> {tmp_path}/asked; cp {tmp_path}/package.tgz iconify-json-9.8.7.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    main(["data", "icons", "--out", str(tmp_path / "fetched"), "--size", "16"])
    options = ["--package-version", "9.8.7", "--concepts", "bell,mars"]
    main(["data", "icons", "--out", str(tmp_path / "newer"), "--size", "16", *options])
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"pack @iconify/json@{VERSION}", "pack @iconify/json@9.8.7"]
    assert f"@iconify/json` {VERSION}, " in (DOCS / "data.md").read_text(encoding="utf-8")
    assert f"@iconify/json {VERSION}, " in (packaged_root() / "icons" / "LICENCES.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "fetched/train: 65 images of 3 concepts" in printed
    assert "newer/val: 4 images of 2 concepts" in printed

    npm.write_text("#!/bin/sh\necho npm error code E404 >&2; echo npm error 404 Not Found >&2; exit 1\n")
    said = (
        r"could not be downloaded \(npm error code E404 npm error 404 Not Found\); install npm and check the network,"
    )
    with pytest.raises(ValueError, match=f"^package_version = .* {said} or give --source DIR with the unpacked"):
        icons(str(tmp_path / "icons"), 16)
    assert not (tmp_path / "icons").exists()


# --- what icons show ---


def test_names_lose_their_style():
    for name, plain in {
        "alarm-clock-2-outline-24px": "alarm-clock",
        "bell3-16x16-filled": "bell",
        "street-light-bold": "street-light",
        "street-light-pole-light": "street-light-pole",
        "home-light": "home",
        "outline": "",
    }.items():
        assert rules.plain_name(name) == plain
    assert rules.picture_of("home-2-light") == rules.picture_of("home-2") != rules.picture_of("home")
    assert [rules.concept_of("tabler", name) for name in ("man-filled", "notification")] == ["man", None]  # looked at
    assert rules.designer_of("fa6-solid") == rules.designer_of("fa") != rules.designer_of("mdi")


def test_the_lists_are_whole():
    names = [name for several in rules.CONCEPTS.values() for name in several]
    assert len(names) == len(set(names))  # each of one concept
    assert [name for name in names if rules.plain_name(name) != name] == []  # these would never be found
    keys = [key for file in ("rejects.txt", "relabels.txt") for key in rules._read(file)]
    concepts = {word for key in keys for word in key.split(" > ")} - {"-"}
    assert concepts <= rules.CONCEPTS.keys()
    designers = [prefix for several in rules._read("designers.txt").values() for prefix in several]
    assert len(designers) == len(set(designers))
