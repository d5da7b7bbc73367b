import json
import os
import sys
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvar.cli import main
from mvar.data import emoji as module
from mvar.data.emoji import emoji
from mvar.data.iconify import VERSION
from mvar.data.splits import open_splits

DATA_PAGE = Path(__file__).parents[2] / "docs" / "data.md"
SMILEYS = [unicodedata.name(chr(code)).lower().replace(" ", "-") for code in range(0x1F600, 0x1F614)]
FOODS = [unicodedata.name(chr(code)).lower().replace(" ", "-") for code in range(0x1F345, 0x1F359)]


def disc(colour, more=""):
    return f'<circle cx="8" cy="8" r="7" fill="{colour}"{more}/>'


def colours(names, blue):
    return {name: {"body": disc(f"#{i * 6:02x}40{blue}")} for i, name in enumerate(names)}


def write_package(folder, sets):
    """sets: prefix to (what collections.json says, the set's file)."""
    (folder / "json").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"version": "9.8.7"}))
    (folder / "collections.json").write_text(json.dumps({prefix: info for prefix, (info, _) in sets.items()}))
    for prefix, (_, content) in sets.items():
        (folder / "json" / f"{prefix}.json").write_text(json.dumps(content))


def info(spdx="MIT", **more):
    licence = {"title": f"{spdx} licence", "spdx": spdx, "url": "https://a.licence"}
    about = {"name": "A set", "author": {"name": "A. Author", "url": "https://an.author"}, "license": licence}
    return {**about, "category": "Emoji", "palette": True, **more}


@pytest.fixture
def sets():
    reference = {
        "icons": {
            **colours([*SMILEYS, *FOODS], "80"),
            "waving-hand": {"body": disc("red")},
            "waving-hand-dark-skin-tone": {"body": disc("brown")},
            "dark-skin-tone": {"body": disc("brown")},
            "man-mage": {"body": disc("#123456")},
            "woman-mage": {"body": disc("#123457")},
            "flag-norway": {"body": disc("#ff0001")},
            "flag-svalbard-and-jan-mayen": {"body": disc("#ff0001")},
            "outdated": {"body": disc("blue"), "hidden": True},
            "regional-indicator-a": {"body": disc("blue")},
        },
        "aliases": {"helo": {"parent": "waving-hand"}, "tomato-mirrored": {"parent": "tomato", "hFlip": True}},
        "chars": {
            **{f"{0x1F600 + i:x}": name for i, name in enumerate(SMILEYS)},
            **{f"{0x1F345 + i:x}-fe0f": name for i, name in enumerate(FOODS)},
            "1f44b": "waving-hand",
            "1f44b-1f3ff": "waving-hand-dark-skin-tone",
            "1f3ff": "dark-skin-tone",
            "1f9d9-200d-2642": "man-mage",
            "1f9d9-200d-2640": "woman-mage",
            "1f1f3-1f1f4": "flag-norway",
            "1f1f8-1f1ef": "flag-svalbard-and-jan-mayen",
            "1f1e6": "regional-indicator-a",
            "1f47e": "outdated",
        },
        "categories": {
            "Smileys & Emotion": SMILEYS,
            "Food & Drink": FOODS,
            "People & Body": ["waving-hand", "waving-hand-dark-skin-tone", "man-mage", "woman-mage"],
            "Flags": ["flag-norway", "flag-svalbard-and-jan-mayen"],
            "Component": ["dark-skin-tone", "regional-indicator-a"],
        },
    }
    other = {
        "icons": {
            **{name.replace("-", ""): icon for name, icon in colours([*SMILEYS, *FOODS[1:]], "f0").items()},
            "tomato-1": {"body": disc("#00ff01")},
            "tomato-2": {"body": disc("#00ff02")},
            "helo-1": {"body": disc("#00ff03")},
            "helo-2": {"body": disc("#00ff04")},
            "mage-of-ours": {"body": disc("#00ff05")},
            "norway": {"body": disc("#00ff06")},
            "flag-for-flag-svalbard-and-jan-mayen": {"body": disc("#00ff07")},
            "no-emoji-at-all": {"body": disc("blue")},
            "tomato-mirrored": {"body": disc("blue")},
        },
        "aliases": {"man-mage": {"parent": "mage-of-ours"}},
        "categories": {"Things": SMILEYS, "Flags": ["norway", "flag-for-flag-svalbard-and-jan-mayen"]},
    }
    one = {"icons": {"tomato": {"body": disc("blue")}}, "chars": {"1f345": "tomato"}, "categories": {}}
    return {
        "ref": (info(), reference),
        "other-1": (info("CC-BY-4.0", category=None, name="Other Emoji", version="1.2"), other),
        "share-alike": (info("CC-BY-SA-4.0"), one),
        "unlicensed": (info(license=None), one),
        "grey": (info(palette=False), one),
        "arrows": (info(category="UI"), one),
    }


@pytest.fixture
def source(sets, tmp_path):
    write_package(tmp_path / "package", sets)
    return tmp_path / "package"


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sides(folder):
    """File name to (split, class)."""
    return {path.name: path.parts[-3:-1] for path in folder.rglob("*.png")}


def test_every_emoji_is_on_one_side_in_its_class_whoever_drew_it(source, tmp_path):
    out = tmp_path / "emoji"
    counts = emoji(str(out), 16, str(source))
    found = sides(out)
    for group, names in (("smileys-emotion", SMILEYS), ("food-drink", FOODS[1:])):
        for name in names:
            ours, others = found.pop(f"ref-{name}.png"), found.pop(f"other-1-{name.replace('-', '')}.png")
            assert ours == others
            assert ours[1] == group
    tomato, hand, mage, norway = (
        found.pop(f"ref-{n}.png") for n in ("tomato", "waving-hand", "man-mage", "flag-norway")
    )
    assert found.pop("other-1-tomato-1.png") == found.pop("other-1-tomato-2.png") == tomato  # two drawings
    assert found.pop("other-1-helo-1.png") == hand  # named as an alias; its second drawing is another skin tone
    assert found.pop("ref-woman-mage.png") == found.pop("other-1-mage-of-ours.png") == mage
    assert mage[1] == hand[1] == "people-body"
    # The two flags look the same: one picture, and on one side though other sets may draw them differently.
    assert found.pop("other-1-norway.png") == norway
    assert found.pop("other-1-flag-for-flag-svalbard-and-jan-mayen.png") == norway
    assert norway[1] == "flags"
    assert not found  # no skin tones, hidden icons, components, unknown names, nor other sets
    assert counts.total() == len(sides(out))
    assert counts["ref", "val", "food-drink"] == 2  # a tenth of twenty


def test_the_reader_finds_the_images_square_on_white(sets, tmp_path):
    icons, categories = sets["ref"][1]["icons"], sets["ref"][1]["categories"]
    del categories["Flags"], categories["People & Body"]  # too few to hold any out
    icons[SMILEYS[0]] = {"body": disc("#000000", ' opacity="0.5"'), "width": 48, "height": 16, "left": -16}
    icons[SMILEYS[1]] = {
        "body": '<filter id="f"><feFlood flood-color="red"/><feComposite in2="SourceGraphic" operator="in"/></filter>'
        '<linearGradient id="g"><stop stop-color="red"/><stop offset="1" stop-color="blue"/></linearGradient>'
        f'<g filter="url(#f)">{disc("black")}</g><rect width="16" height="2" fill="url(#g)"/>'
    }
    write_package(tmp_path / "package", sets)
    out = tmp_path / "emoji"
    emoji(str(out), 48, str(tmp_path / "package"))
    train, val = open_splits(out, (48, 48), resize_factor=1.0)
    assert len(train) + len(val) == len(sides(out))
    assert train.classes == val.classes == ["food-drink", "smileys-emotion"]

    def pixels(name):
        with Image.open(next(out.rglob(f"ref-{name}.png"))) as image:
            assert (image.size, image.mode) == ((48, 48), "RGB")
            return np.asarray(image).astype(int)

    wide = pixels(SMILEYS[0])
    assert (wide[:16] == 255).all()
    assert (wide[32:] == 255).all()
    assert (abs(wide[24, 24] - 127) <= 1).all()
    filtered = pixels(SMILEYS[1])
    assert tuple(filtered[24, 24]) == (255, 0, 0)
    red, blue = filtered[2, 4], filtered[2, 43]
    assert red[0] > 200 > 60 > red[2]
    assert blue[2] > 200 > 60 > blue[0]
    assert len(np.unique(filtered[8:, :, 1])) > 4  # a filter's edge is smooth too


def test_the_page_of_licences_says_what_the_package_says(source, tmp_path):
    counts = emoji(str(tmp_path / "emoji"), 16, str(source))
    page = (tmp_path / "emoji" / "LICENCES.md").read_text()
    assert "@iconify/json 9.8.7" in page
    for prefix, title, spdx, version in (
        ("ref", "A set", "MIT", "not given"),
        ("other-1", "Other Emoji", "CC-BY-4.0", "1.2"),
    ):
        images = sum(n for (where, _, _), n in counts.items() if where == prefix)
        assert (
            f"| {prefix} | {title} | [A. Author](https://an.author) | [{spdx} licence ({spdx})](https://a.licence) "
            f"| {version} | {images} |"
        ) in page
    assert "share-alike" not in page


def test_runs_are_equal_and_a_broken_one_leaves_nothing(source, tmp_path, monkeypatch):
    for name in ("one", "two"):
        emoji(str(tmp_path / name), 16, str(source))
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    with pytest.raises(ValueError, match=r"out = .* not an empty folder"):
        emoji(str(tmp_path / "one"), 16, str(source))

    def interrupted(items, total, label):
        yield next(iter(items))
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        emoji(str(tmp_path / "three"), 16, str(source))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "package", "two"]


def test_an_emoji_stays_on_its_side_when_a_set_is_added(sets, source, tmp_path):
    emoji(str(tmp_path / "two-sets"), 16, str(source))
    write_package(tmp_path / "less", {"ref": sets["ref"]})
    emoji(str(tmp_path / "one-set"), 16, str(tmp_path / "less"))
    both = sides(tmp_path / "two-sets")
    assert sides(tmp_path / "one-set").items() <= both.items()


def damage(kind, package):
    path = package / "json" / "ref.json"
    content = json.loads(path.read_text())
    if kind == "no folder":
        package.rename(package.with_name("elsewhere"))
    elif kind == "no list":
        (package / "collections.json").unlink()
    elif kind == "no set":
        path.unlink()
    elif kind == "cut":
        path.write_text(path.read_text()[:-9])
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe\0")
    elif kind == "a list":
        path.write_text("[]")
    elif kind == "no icons":
        path.write_text("{}")
    elif kind == "code":
        content["chars"]["smile"] = "tomato"
        path.write_text(json.dumps(content))
    else:
        icon = {"path": {"../../evil": {"body": ""}}, "body": {"tomato": {"body": 3}}, "text": {"tomato": "x"}}
        icon |= {"flat": {"tomato": {"body": "", "width": 0}}}
        icon |= {"svg": {"tomato": {"body": "<g><path"}}, "side": {"tomato": {"body": "", "width": "wide"}}}
        content["icons"] |= icon[kind]
        path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no folder", r"package.json' does not exist; give the folder of the unpacked npm package @iconify/json"),
        ("no list", r"collections.json' does not exist; give the folder"),
        ("no set", r"ref.json' does not exist; give the folder"),
        ("cut", r"ref.json' cannot be read as JSON"),
        ("bytes", r"ref.json' cannot be read as JSON"),
        ("a list", r"ref.json' is not a JSON object"),
        ("no icons", r"ref.json' is not a set of icons \('icons'\)"),
        ("path", r"ref.json' is not a set of icons \('../../evil' is no icon's name\)"),
        ("body", r"ref.json' is not a set of icons \('tomato' has no SVG text or no size\)"),
        ("text", r"ref.json' is not a set of icons"),
        ("code", r"ref.json' is not a set of icons \('smile' are no code points\)"),
        ("flat", r"ref.json' is not a set of icons \('tomato' has no SVG text or no size\)"),
        ("side", r"ref.json' is not a set of icons"),
        ("svg", r"the icon ref:tomato cannot be drawn"),
    ],
)
def test_damaged_packages_are_named(source, tmp_path, kind, message):
    damage(kind, source)
    with pytest.raises(ValueError, match=f"^source: .*{message}") as caught:
        emoji(str(tmp_path / "emoji"), 16, str(source))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "emoji").exists()


def test_a_package_without_such_sets_is_refused(sets, tmp_path):
    write_package(tmp_path / "package", {name: sets[name] for name in ("share-alike", "grey", "arrows", "unlicensed")})
    with pytest.raises(ValueError, match=r"^source = .*holds no emoji in colour under a permissive licence"):
        emoji(str(tmp_path / "emoji"), 16, str(tmp_path / "package"))


def test_the_command_fetches_the_package(source, tmp_path, monkeypatch, capsys):
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
        tar.add(source, "package")
    tools = tmp_path / "tools"
    tools.mkdir()
    npm = tools / "npm"
    npm.write_text(f'#!/bin/sh\necho "$1 $2" >> {tmp_path}/asked; cp {tmp_path}/package.tgz iconify-json-9.8.7.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    main(["data", "emoji", "--out", str(tmp_path / "fetched"), "--size", "16"])
    options = ["--package-version", "9.8.7"]
    main(["data", "emoji", "--out", str(tmp_path / "newer"), "--size", "16", *options])
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == [f"pack @iconify/json@{VERSION}", "pack @iconify/json@9.8.7"]
    assert f"@iconify/json` {VERSION}, " in DATA_PAGE.read_text(encoding="utf-8")
    assert f"@iconify/json {VERSION}, " in DATA_PAGE.read_text(encoding="utf-8")  # the counts are of it
    counts = emoji(str(tmp_path / "given"), 16, str(source))
    assert tree(tmp_path / "fetched") == tree(tmp_path / "given")
    val = sum(n for (_, split, _), n in counts.items() if split == "val")
    assert f"fetched/val: {val} images" in capsys.readouterr().out

    mend = r"; install npm and check the network, or give --source DIR with the unpacked package"
    fails = r"\(npm error code E404 npm error 404 Not Found\)"
    cases = [("echo npm error code E404 >&2; echo npm error 404 Not Found >&2; echo more >&2; exit 1", fails)]
    cases += [("true", r"\(.*\)"), ("echo hello > some.tgz", r"\(.*\)")]
    for script, reason in cases:
        npm.write_text(f"#!/bin/sh\n{script}\n")
        with pytest.raises(ValueError, match=f"could not be downloaded {reason}{mend}") as caught:
            emoji(str(tmp_path / "emoji"), 16)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=f"could not be downloaded .*No such file.*npm.*{mend}"):
        emoji(str(tmp_path / "emoji"), 16)
    assert not (tmp_path / "emoji").exists()


@pytest.mark.parametrize("size", [7, 1025])
def test_sizes_without_sense_are_refused(source, tmp_path, size):
    with pytest.raises(ValueError, match=rf"^size = {size}: must lie in 8 to 1,024"):
        emoji(str(tmp_path / "emoji"), size, str(source))


def test_a_missing_renderer_is_named(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(SystemExit, match="2"):
        main(["data", "emoji", "--out", str(tmp_path / "emoji"), "--source", str(source)])
    assert 'pip install "mvar-torch[emoji]"' in capsys.readouterr().err
