import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mvar.files import atomic_folder, atomic_write, new_folder, writable_file, writable_folder, write_text


def fails_halfway(partial):
    target = partial / "half" if partial.is_dir() else partial
    target.write_text("half")
    raise KeyboardInterrupt


def test_a_file_appears_whole_with_its_suffix_or_not_at_all(tmp_path):
    path = tmp_path / "metrics.json"
    seen = []
    atomic_write(path, lambda partial: (seen.append(partial), partial.write_text("old"), path.exists() and 1 / 0))
    assert path.read_text() == "old"
    assert seen[0].suffix == ".json"
    assert seen[0].parent == tmp_path
    assert seen[0].name.startswith(".")
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fails_halfway)
    assert path.read_text() == "old"
    atomic_write(path, lambda partial: partial.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_utf_8_cannot_hold_is_escaped_as_json_has_it(tmp_path):
    names = ["caf\u00e9", "\udcff.png"]
    write_text(tmp_path / "a.json", json.dumps(names, ensure_ascii=False))
    assert (tmp_path / "a.json").read_bytes() == b'["caf\xc3\xa9", "\\udcff.png"]'
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == names


@pytest.mark.parametrize("name", ["x" * 251 + ".csv", "\u00e9" * 125 + ".csv"])
def test_the_longest_names_can_be_written(tmp_path, name):
    write_text(tmp_path / name, "a")
    assert (tmp_path / name).read_text() == "a"


def test_others_may_read_what_the_umask_allows(tmp_path):
    atomic_write(tmp_path / "a.safetensors", lambda partial: save_file({"x": torch.zeros(1)}, partial))
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "set"
    with pytest.raises(KeyboardInterrupt):
        atomic_folder(path, fails_halfway)
    assert list(tmp_path.iterdir()) == [], "the folders above it are removed again"
    path.mkdir(parents=True)  # an empty folder may be there already
    atomic_folder(path, lambda partial: (partial / "a").write_text("a"))
    assert [entry.name for entry in path.iterdir()] == ["a"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "full folder", "broken link"])
def test_a_folder_in_use_is_refused(tmp_path, kind):
    path = tmp_path / "out"
    if kind == "file":
        path.write_text("mine")
    elif kind == "full folder":
        (path / "mine").mkdir(parents=True)
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"out = '.*out': already exists .* give a new name"):
        atomic_folder(path, lambda partial: None)


def test_a_file_brings_its_folder_and_takes_it_along_when_it_fails(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fails_halfway)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine").touch()
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fails_halfway)
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["mine"]
    atomic_write(path, lambda partial: partial.write_text("c"))
    assert path.read_text() == "c"


@pytest.mark.parametrize("check", [writable_folder, writable_file, new_folder])
def test_places_are_checked_and_nothing_is_made(tmp_path, monkeypatch, check):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for good in ("new", "a/b", tmp_path / "a" / "b", "../elsewhere"):
        assert check(good, "run") == Path(good)
    with pytest.raises(ValueError, match=r"^run = 'file/b/c': cannot be written \('.*file' is no folder\); give a .*"):
        check("file/b/c", "run")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"^run = 'new': cannot be written \('.*' is not writable\); give a .*"):
        check("new", "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match=r"^run = '.*': is a folder; give a file's name$"):
        writable_file(tmp_path, "run")
