import shutil

import pytest
import torch

from mvar.features.judge import Judge
from mvar.model import load
from mvar.recipes import rejection


@pytest.fixture
def arguments(fashion_excerpt, tmp_path):
    """What a study is told: few images, and two untrained judges."""
    for seed, name in enumerate(("judge", "selector")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            Judge(10, channels=1).save(tmp_path / f"{name}.safetensors")
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("judge", "selector")}
    for folder in fashion_excerpt.glob("*/*"):
        few = tmp_path / "data" / folder.relative_to(fashion_excerpt)
        few.mkdir(parents=True)
        for image in sorted(folder.iterdir())[:3]:
            shutil.copy(image, few)
    return {"model": "fashion-mnist", "data": str(tmp_path / "data"), **files, "out": str(tmp_path / "out")}


class Brightness:
    """Stands for the distance: quick, and plain to compute again."""

    def __init__(self, reference):
        self.features(reference)

    def features(self, images):
        return images.float().flatten(1)

    def of_features(self, features):
        return float(features.mean())


def test_all_shares_are_of_one_set_of_candidates(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(rejection, "OF", (1, 2))
    monkeypatch.setattr(rejection, "Distance", Brightness)
    page = tmp_path / "page.md"
    page.write_text("\n".join(("before", *rejection.page.markers("out"), "after")))
    report = rejection.study(**arguments, groups=6, page_file=str(page))
    rows = {(row.pop("judge"), row.pop("fork_at"), row.pop("of")): row for row in report["rows"]}
    assert rows.keys() == {(judge, k, n) for judge in ("self", "classifier") for k in (0, 3) for n in (1, 2)}
    # What the study chose is what the library gives.
    model, form = load("fashion-mnist"), rejection.FORMS["fashion-mnist"]
    labels = [0, 1, 3, 5, 6, 8]  # of every fifth of 30 images
    for k in (0, 3):
        out = model.sample_best(labels, "self", keep=2, of=2, fork_at=k)
        images = form.of(out.pixels).float()
        plain = images[[out.candidates.index(2 * group) for group in range(6)]]
        assert rows["self", k, 1]["distance"] == pytest.approx(float(plain.mean()))
        assert rows["self", k, 2]["distance"] == pytest.approx(float(images[::2].mean()))
        assert rows["classifier", k, 1] == pytest.approx(rows["self", k, 1])
        assert rows["classifier", k, 2]["distance"] != rows["self", k, 2]["distance"]
    assert f"| classifier | to 3x3 | 1 of 2 | {rows['classifier', 3, 2]['distance']:.1f} |" in page.read_text()
    assert (tmp_path / "out" / "rejection.png").stat().st_size > 10_000


def test_refused_before_any_work(arguments, monkeypatch):
    monkeypatch.setattr(rejection, "load", None)
    with pytest.raises(ValueError, match=r"selector = .*: is the judge itself; train another"):
        rejection.study(**{**arguments, "selector": arguments["judge"]})
    with pytest.raises(ValueError, match="model = 'other': choose from fashion-mnist, emoji"):
        rejection.study(**{**arguments, "model": "other"})
