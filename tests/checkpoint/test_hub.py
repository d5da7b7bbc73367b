"""The Hugging Face hub: bundles pushed and pulled through huggingface_hub's mixin, with stand-ins for its transfers."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from mvar.model import Model, load


def test_saved_and_loaded_from_a_folder(bundle, tmp_path):
    model = load(bundle)
    model.save_pretrained(tmp_path / "clothes")
    card = (tmp_path / "clothes" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mvar\n")
    assert "# clothes" in card
    again = Model.from_pretrained(tmp_path / "clothes")
    assert torch.equal(again.sample([0, 1]).pixels, model.sample([0, 1]).pixels)
    assert (again.classes, again.defaults) == (model.classes, model.defaults)
    half = Model.from_pretrained(tmp_path / "clothes", dtype="bfloat16")
    with pytest.raises(ValueError, match="load the model with dtype='float32' to save it exactly"):
        half.save_pretrained(tmp_path / "half")


def test_pushed_and_pulled(bundle, tmp_path, monkeypatch):
    asked = []

    def upload(self, *, repo_id, folder_path, **_):
        shutil.copytree(folder_path, tmp_path / repo_id)
        return "the commit"

    def download(repo_id, **options):
        asked.append(options.get("revision"))
        return tmp_path / repo_id

    monkeypatch.setattr(
        "huggingface_hub.HfApi.create_repo", lambda self, repo_id, **_: SimpleNamespace(repo_id=repo_id)
    )
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = load(bundle)
    assert model.push_to_hub("me/clothes") == "the commit"
    assert {path.name for path in (tmp_path / "me" / "clothes").iterdir()} == {
        "config.json", "classes.json", "README.md", "tokenizer.safetensors", "generator.safetensors"
    }  # fmt: skip
    assert 'mvar.load("me/clothes")' in (tmp_path / "me" / "clothes" / "README.md").read_text()
    assert torch.equal(load("me/clothes").sample([0, 1]).pixels, model.sample([0, 1]).pixels)
    assert Model.from_pretrained("me/clothes", revision="v1", dtype="bfloat16").classes == ["cat", "dog"]
    assert asked == [None, "v1"]
