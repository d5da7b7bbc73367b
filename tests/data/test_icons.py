"""Icons of an excerpt of the npm package: 110 real ones of 39 sets, each set with its author and licence."""

import copy
import hashlib
import json
import os
import re
import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mvar.cli import main
from mvar.data import icon_rules as rules
from mvar.data import icons as module
from mvar.data.icon_drawing import draw, is_black_on_white, near, shape_of
from mvar.data.iconify import VERSION, Icon, read_sets
from mvar.data.icons import icons, is_wanted
from mvar.data.splits import open_splits

EXCERPT = json.loads((Path(__file__).parent / "icons-excerpt.json").read_text(encoding="utf-8"))
DOCS = Path(__file__).parents[2] / "docs"
# Of all files that the excerpt gives: paths and bytes.
SHA256 = "be7bbb473ae92f80650efeeb90a63eef2e6372d1f24028be187ee85c190c8556"
MISSING = {
    "wrong": ["bx male", "carbon anchor", "icon-park-outline anchor-one", "ph gender-male-fill"],
    "another weight of a wrong one": ["ph gender-male-bold"],
    "drawn before": [
        *["bi bell-fill", "boxicons anchor-filled", "lucide mars-stroke", "mynaui anchor-solid", "reicon male-filled"],
        *["teenyicons anchor-outline", "carbon gender-male", "gravity-ui bell-fill", "uil anchor"],
    ],
    "drawn before by a wrong one": ["uil mars"],
    "near to a training image": ["uis anchor", "whh bell"],
    "of too small a concept": ["gg gender-female", "hugeicons venus", "lucide venus", "picon female", "reicon woman"],
}


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


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digest(folder):
    found = hashlib.sha256()
    for name, content in sorted(tree(folder).items()):
        found.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return found.hexdigest()


def icon(body, width=16.0, height=16.0, left=0.0, top=0.0):
    return Icon("a-set", "an-icon", body, left, top, width, height)


@pytest.mark.parametrize("in_processes", [module.in_processes, partial(module.in_processes, processes=2, few=0)])
def test_the_same_package_gives_the_same_files(source, tmp_path, monkeypatch, in_processes):
    monkeypatch.setattr(module, "in_processes", in_processes)
    icons(str(tmp_path / "icons"), source=source)
    assert digest(tmp_path / "icons") == SHA256


def test_each_picture_is_there_once_in_its_concept_and_part(written):
    found = written()
    names = {f"{name[5:-5]} {key}" for name, file in EXCERPT.items() if "icons" in file for key in file["icons"]}
    missing = {name for several in MISSING.values() for name in several}
    assert names - found.keys() == missing
    assert len(found) == len(names) - len(missing)
    assert found["mynaui male"] == found["fa mars"] == ("train", "mars")  # named for a man, looks like the sign
    assert found["vaadin anchor"] == found["uit anchor"] == ("val", "anchor")
    held_out = {name for name, (split, _) in found.items() if split == "val"}
    designers = {"grommet-icons", "iconoir", "la", "system-uicons", "uit", "vaadin"}
    assert {name.split()[0] for name in held_out} == designers


def test_a_validation_image_that_is_trained_on_as_another_concept_is_left_out(files, written):
    box = {"width": 24, "height": 24}
    for ours, theirs in (("vaadin", "mynaui"), ("system-uicons", "uit")):  # of a designer for training, of one held out
        files[f"json/{ours}.json"]["icons"]["bells"] = files[f"json/{theirs}.json"]["icons"]["anchor"] | box
    found = written()
    assert "vaadin bells" not in found
    assert found["system-uicons bells"] == ("val", "bell")


def test_the_reader_finds_classes_and_both_parts(source, tmp_path):
    counts = icons(str(tmp_path / "icons"), source=source)
    train, val = open_splits(tmp_path / "icons", (64, 64), resize_factor=1.0)
    assert train.classes == val.classes == ["anchor", "bell", "mars"]
    assert (len(train), len(val)) == (65, 7)
    assert counts.total() == 72
    assert counts["vaadin", "val", "bell"] == 1
    assert train.batch([0])[0].unique().numel() > 2  # smooth edges


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


def test_concepts_are_chosen_by_name(written):
    assert {concept for _, concept in written(concepts=" Bell,anchor ").values()} == {"anchor", "bell"}


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        ("bell,ancor", r"concepts = 'bell,ancor': no concept 'ancor'; close: anchor$"),
        ("qqq", r"concepts = 'qqq': no concept 'qqq'$"),
        (" , ", r"concepts = ' , ': names no concept; leave it out for all$"),
        ('"bell', r"concepts = '\"bell': close each name in double quotes"),
        (
            "bell,venus,cat",
            r"concepts = 'bell,venus,cat': too few icons of cat, venus: a concept needs 10 sets that draw",
        ),
    ],
)
def test_concepts_that_cannot_be_had(source, tmp_path, concepts, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        icons(str(tmp_path / "icons"), concepts=concepts, source=source)
    assert not (tmp_path / "icons").exists()


# --- what is taken ---


def test_sets_are_wanted_by_licence_colour_and_kind():
    for spdx in ("MIT", "Apache-2.0", "OFL-1.1", "CC0-1.0", "ISC", "BSD-3-Clause", "Unlicense"):
        assert is_wanted("a-set", {"license": {"spdx": spdx}, "palette": False})
    for spdx in ("BSD-2-Clause", "CC-BY-4.0", "CC-BY-SA-4.0", "GPL-3.0", None, ["MIT"]):
        assert not is_wanted("a-set", {"license": {"spdx": spdx}, "palette": False})
    assert not is_wanted("a-set", {"palette": False})
    assert not is_wanted("a-set", {"license": {"spdx": "MIT"}, "palette": True})
    assert not is_wanted("simple-icons", {"license": {"spdx": "MIT"}, "palette": False})


def test_hidden_and_turned_icons_are_not_read(files, tmp_path):
    body = {"body": "<path/>"}
    files["json/bi.json"]["icons"] = {
        "bell": body,
        "bell-1": {**body, "hidden": True},
        **{f"bell-{key.lower()}": {**body, key: 1} for key in ("rotate", "hFlip", "vFlip")},
        "anchor": {**body, "rotate": 0, "width": 20},
    }
    version, sets = read_sets(
        write(tmp_path, files), "", lambda prefix, info: prefix == "bi", lambda prefix, name: True
    )
    assert version == "9.8.7"
    ((anchor, bell),) = (found.icons for found in sets)
    assert (bell.name, bell.left, bell.width, bell.height) == ("bell", 0, 16, 16)
    assert (anchor.name, anchor.width, anchor.height) == ("anchor", 20, 16)


@pytest.mark.parametrize(
    ("body", "taken"),
    [
        ('<path fill="currentColor" d="M0 0"/>', True),
        ('<path fill="none" stroke="#000" style="fill:white"/>', True),
        ('<mask id="m"><path fill="#FFF"/></mask><path mask="url(#m)"/><path clip-path="url(#m)"/>', True),
        ('<path fill="red"/>', False),
        ("<path style='stroke: #1a2b3c'/>", False),
        ('<path stop-color="#123"/>', False),
        ('<path opacity=".3"/>', False),
        ('<path fill-opacity="0.5"/>', False),
        ('<path opacity="0"/><path opacity="1"/>', True),
        ('<path fill="url(#gradient)"/>', False),
        ("<text>a</text>", False),
        ('<image href="a.png"/>', False),
        ("<path d='" + 6130 * "0" + "'/>", True),
        ("<path d='" + 6140 * "0" + "'/>", False),
        (700 * '<animate attributeName="r"/>' + "<path/>", True),
    ],
)
def test_icons_of_one_colour(body, taken):
    assert is_black_on_white(body) is taken


def test_drawings_without_a_picture_have_no_shape():
    stripes = "".join(f'<path d="M0 {y}h16v1h-16z"/>' for y in range(0, 16, 4))
    assert shape_of(icon(stripes)) is not None
    assert shape_of(icon("")) is None
    assert shape_of(icon('<path d="M0 0h.5v.5h-.5z"/>')) is None
    assert shape_of(icon('<path d="M0 0h16v16h-16z"/>')) is None  # full
    assert shape_of(icon('<path d="M0 0h3v3h-3z"/>')) is None  # no edges to speak of
    assert shape_of(icon(f'<g opacity="0.5">{stripes}</g>')) is None  # grey


def test_an_icon_is_drawn_in_black_within_its_margin():
    whole = draw(icon('<path fill="currentColor" d="M-9 -9h90v90h-90z"/>'), 64)
    assert whole.dtype == np.uint8
    assert (whole == 0).all()  # what lies outside of the box is seen
    for size, edge in ((64, 4), (32, 2), (128, 8)):
        box = draw(icon('<animate attributeName="x"/><path d="M0 0h16v16h-16z"/>'), size)
        assert (box[edge:-edge, edge:-edge] == 0).all()
        assert (box != 255).sum() == (size - 2 * edge) ** 2
    wide = draw(icon('<path d="M-8 4h28v14h-28z"/>', width=28.0, height=14.0, left=-8.0, top=4.0), 64)
    assert (wide[18:46, 4:60] == 0).all()
    assert (wide != 255).sum() == 28 * 56
    assert 0 < draw(icon('<path d="M0 0h16v8.1h-16z"/>'), 64)[32, 32] < 255


def test_shapes_do_not_depend_on_place_and_size():
    small = shape_of(icon('<path d="M1 1h4v2h-2v4h-2z"/>'))
    large = shape_of(icon('<path d="M8 8h8v4h-4v8h-4z"/>', width=24.0, height=24.0))
    other = shape_of(icon('<path d="M8 8h8v12h-4v-8h-4z"/>', width=24.0, height=24.0))
    assert near(small[None], large[None], 0.1)[0]
    assert not near(small[None], other[None], 0.3)[0]


def test_what_is_near_is_the_difference_over_the_mean_ink():
    random = np.random.default_rng(0)
    first = random.integers(0, 4081, (1, 1024)).astype(np.int16)
    drift = random.integers(-700, 701, (60, 1024)) * np.linspace(0, 1, 60)[:, None]
    some = (first + drift).clip(0, 4080).astype(np.int16)
    wide = some.astype(int)
    for limit in (0.03, 0.06, 0.09):
        expected = [any(2 * abs(a - b).sum() < limit * (a + b).sum() for b in wide[1::2]) for a in wide[::2]]
        assert near(some[::2], some[1::2], limit).tolist() == expected
        assert 3 < sum(expected) < 27
    assert not near(some, some[:0], 1.0).any()


# --- the lists ---


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


def test_concepts_of_names_and_what_people_saw():
    assert rules.concept_of("mdi", "home-outline") == "house"
    assert rules.concept_of("mdi", "nothing-known") is None
    assert rules.concept_of("bi", "gender-male") == "mars"
    assert rules.concept_of("tabler", "man-filled") == "man"
    assert rules.concept_of("mdi", "male") == "mars"
    assert rules.concept_of("tabler", "notification") is None
    assert rules.concept_of("material-symbols", "notifications") == "bell"
    assert rules.is_wrong("apple", "bi", "apple")
    assert not rules.is_wrong("anchor", "bi", "apple")
    assert rules.designer_of("fa6-solid") == rules.designer_of("fa") != rules.designer_of("mdi")
    assert [rules.split_of(prefix) for prefix in ("uit", "carbon", "mdi")] == ["val", "val", "train"]


def test_the_lists_are_whole():
    names = [name for several in rules.CONCEPTS.values() for name in several]
    assert len(names) == len(set(names))  # each of one concept
    assert [name for name in names if rules.plain_name(name) != name] == []  # these would never be found
    lists = Path(rules.__file__).parent / "icon_lists"
    keys = [key for file in ("rejects.txt", "relabels.txt") for key in rules._read(file)]
    concepts = {word for key in keys for word in key.split(" > ")} - {"-"}
    assert concepts <= rules.CONCEPTS.keys()
    designers = [prefix for several in rules._read("designers.txt").values() for prefix in several]
    assert len(designers) == len(set(designers))
    assert sorted(path.name for path in lists.iterdir()) == sorted(
        ["concepts.txt", "designers.txt", "rejects.txt", "relabels.txt", "rules.txt"]
    )


# --- the package ---


def damaged(kind, files):
    of_set = files["json/bi.json"]
    if kind == "no package":
        files.clear()
    elif kind == "no list":
        del files["collections.json"]
    elif kind == "no set":
        del files["json/bi.json"]
    elif kind in ("a list", "a text"):
        files["json/bi.json"] = [] if kind == "a list" else "bi"
    elif kind == "no info":
        del of_set["info"]
    elif kind == "no icons":
        del of_set["icons"]
    else:
        icon = {"body": "<path/>"}
        of_set["icons"] |= {
            "path": {"anchor--../../evil": icon, "anchor--": icon},
            "body": {"anchor": {"body": 3}},
            "text": {"anchor": "x"},
            "flat": {"anchor": {**icon, "width": 0}},
            "huge": {"anchor": {**icon, "width": 1e400}},
            "side": {"anchor": {**icon, "width": "wide"}},
            "svg": {"anchor": {"body": "<g><path"}},
        }[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no package", r"package.json' cannot be read \(is not a file\); give a whole copy of the npm package"),
        ("no list", r"collections.json' cannot be read \(is not a file\); give a whole copy of the npm package"),
        ("no set", r"json/bi.json is missing; give a whole copy of the npm package @iconify/json$"),
        ("a list", r"'json/bi.json' is not a JSON object"),
        ("a text", r"'json/bi.json' is not a JSON object"),
        ("no info", r"'json/bi.json' is not a set of icons \('info'\)"),
        ("no icons", r"'json/bi.json' is not a set of icons \('icons'\)"),
        ("path", r"'json/bi.json' is not a set of icons \('anchor--' is not a name as sets and icons have\)"),
        ("body", r"'json/bi.json' is not a set of icons \('anchor' has no SVG text or no size\)"),
        ("text", r"'json/bi.json' is not a set of icons"),
        ("flat", r"'json/bi.json' is not a set of icons \('anchor' has no SVG text or no size\)"),
        ("huge", r"'json/bi.json' is not a set of icons \('anchor' has no SVG text or no size\)"),
        ("side", r"'json/bi.json' is not a set of icons"),
        ("svg", r"the icon bi:anchor cannot be drawn"),
    ],
)
def test_damaged_packages_are_named(files, tmp_path, kind, message):
    damaged(kind, files)
    source = write(tmp_path / "package", files)
    with pytest.raises(ValueError, match=f"^source.*{message}") as caught:
        icons(str(tmp_path / "icons"), source=source)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "icons").exists()


@pytest.mark.parametrize("content", [b'{"info": ', b"\xff\xfe\0", b"[" * 100_000])
def test_files_that_are_no_json_are_named(source, tmp_path, content):
    (Path(source) / "json" / "bi.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^source: 'json/bi.json' cannot be read as JSON \(.*\); give a whole copy"):
        icons(str(tmp_path / "icons"), source=source)


def test_a_package_without_such_icons_is_refused(files, tmp_path):
    for name in [name for name in files if name.startswith("json/")]:
        files[name]["info"]["license"]["spdx"] = "GPL-3.0"
    with pytest.raises(ValueError, match=r"^concepts = None: too few icons of accordion, .* and \d+ more: a concept"):
        icons(str(tmp_path / "icons"), source=write(tmp_path / "package", files))


def test_an_interrupted_run_leaves_nothing(source, tmp_path, monkeypatch):
    def interrupted(items, total, label):
        yield next(iter(items))
        raise KeyboardInterrupt

    icons(str(tmp_path / "one"), 16, source=source)
    with pytest.raises(ValueError, match=r"out = .* not an empty folder"):
        icons(str(tmp_path / "one"), 16, source=source)
    monkeypatch.setattr(module, "track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        icons(str(tmp_path / "two"), 16, source=source)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["one", "package"]


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
    assert f"@iconify/json {VERSION}, " in (DOCS / "icons-licences.md").read_text(encoding="utf-8")
    icons(str(tmp_path / "given"), 16, source=source)
    assert tree(tmp_path / "fetched") == tree(tmp_path / "given")
    printed = capsys.readouterr().out
    assert "fetched/train: 65 images of 3 concepts" in printed
    assert "newer/val: 4 images of 2 concepts" in printed

    fix = r"; install npm and check the network, or give --source DIR with the unpacked package"
    fails = r"\(npm error code E404 npm error 404 Not Found\)"
    cases = [("echo npm error code E404 >&2; echo npm error 404 Not Found >&2; echo more >&2; exit 1", fails)]
    cases += [("true", r"\(.*\)"), ("echo hello > some.tgz", r"\(.*\)")]
    cases += [(f"head -c 9000 {tmp_path}/package.tgz > some.tgz", r"\(.*\)")]
    for script, reason in cases:
        npm.write_text(f"#!/bin/sh\n{script}\n")
        with pytest.raises(ValueError, match=f"^package_version = .* could not be downloaded {reason}{fix}") as caught:
            icons(str(tmp_path / "icons"), 16)
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=f"could not be downloaded .*No such file.*npm.*{fix}"):
        icons(str(tmp_path / "icons"), 16)
    assert not (tmp_path / "icons").exists()


@pytest.mark.parametrize("size", [7, 1025])
def test_sizes_without_sense_are_refused(source, tmp_path, size):
    with pytest.raises(ValueError, match=rf"^size = {size}: must lie in 8 to 1,024"):
        icons(str(tmp_path / "icons"), size, source=source)


def test_without_the_extra_the_fix_is_named(source, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(ValueError, match=re.escape('icons: drawing needs resvg-py; pip install "mvar-torch[icons]"')):
        icons(str(tmp_path / "icons"), source=source)
