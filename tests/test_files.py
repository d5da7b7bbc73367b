import pytest
import torch
from safetensors.torch import save_file

from mvar.files import atomic_folder, atomic_write, writable_folder


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


def test_others_may_read_what_the_umask_allows(tmp_path):
    atomic_write(tmp_path / "a.safetensors", lambda partial: save_file({"x": torch.zeros(1)}, partial))
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "set"
    with pytest.raises(KeyboardInterrupt):
        atomic_folder(path, fails_halfway)
    assert list(path.parent.iterdir()) == []
    path.mkdir()  # an empty folder may be there already
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


def test_writable_folder_names_field_value_and_fix(tmp_path):
    assert writable_folder(tmp_path / "a" / "b", "out").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"^run = '.*file/b': cannot be written \(Not a directory\); give .*"
    ) as caught:
        writable_folder(tmp_path / "file" / "b", "run")
    assert "\n" not in str(caught.value)
