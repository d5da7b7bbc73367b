import json

import pytest
import torch

from mvar.evaluation.intervals import share
from mvar.evaluation.report import Value
from mvar.features.judge import Judge, train_judge
from mvar.model import load
from mvar.studies import measuring
from mvar.studies.page import markers
from recipes import rejection
from recipes.shared import run_cli


@pytest.fixture
def arguments(few_images, tmp_path):
    """Arguments of a study: few images, and two untrained judges."""
    # The selector of this seed chooses other images than the model does, and than it would without the black frame.
    for name, channels, seed in (("judge", 1, 0), ("selector", 3, 8)):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            Judge(10, channels).save(tmp_path / f"{name}.safetensors")
    files = {name: str(tmp_path / f"{name}.safetensors") for name in ("judge", "selector")}
    return {"model": "fashion-mnist", "data": few_images(tmp_path / "data", 3), **files, "out": str(tmp_path / "out")}


class Brightness:
    """Stands in for the distance: fast, and easy to recompute."""

    def __init__(self, reference):
        self.features(reference)

    def features(self, images):
        return images.float().flatten(1)

    def with_interval(self, features):
        mean = float(features.mean())
        return Value(value=mean, low=mean - 2, high=mean + 1)

    def describe(self):
        return {"network": "none", "dimensions": 4}


def test_all_shares_are_of_one_set_of_candidates(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(rejection, "OF", (1, 2))
    monkeypatch.setattr(rejection, "Distance", Brightness)
    page = tmp_path / "page.md"
    page.write_text("\n".join(("before", *markers("out"), "after")))
    report = rejection.study(**arguments, groups=6, page_file=str(page))
    rows = {(row.pop("judge"), row.pop("fork_at"), row.pop("of")): row for row in report["rows"]}
    assert rows.keys() == {(judge, k, n) for judge in ("self", "classifier") for k in (0, 3) for n in (1, 2)}
    # The study chooses what the library does, as used by `mvar sample --judge`.
    model, form = load("fashion-mnist"), rejection.FORM
    labels = [0, 1, 3, 5, 6, 8]  # of every fifth of 30 images

    def brightness(out):
        return pytest.approx(float(form.of(out.pixels).float().mean()), abs=1e-5)

    for k, judges in ((0, ["classifier"]), (3, ["self", "classifier"])):
        for name in judges:
            judge = arguments["selector"] if name == "classifier" else name
            both = model.sample_best(labels, judge, of=2, fork_at=k, keep=2)
            firsts = both.select(torch.tensor([both.candidates.index(2 * group) for group in range(6)]))
            assert rows[name, k, 1]["distance"]["value"] == brightness(firsts)
            best = model.sample_best(labels, judge, of=2, fork_at=k)
            assert rows[name, k, 2]["distance"]["value"] == brightness(best)
        assert rows["classifier", k, 2]["distance"] != rows["self", k, 2]["distance"]
    right = share(rows["self", 0, 1]["accuracy"]["value"], 6)
    assert rows["self", 0, 1]["accuracy"]["high"] == pytest.approx(right.high, abs=2e-5)
    value = rows["classifier", 3, 2]["distance"]["value"]
    cell = f"{value:.1f} ({value - 2:.1f} to {value + 1:.1f})"
    text = page.read_text()
    assert f"| classifier | to 3x3 | 1 of 2 | {cell} |" in text
    assert "Note: N = 6 is below 2 x 4 dimensions" in text
    assert (tmp_path / "out" / "rejection.png").stat().st_size > 10_000
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert rejection.table(written) in text
    assert "Note:" not in rejection.table({**written, "groups": 8})


def test_the_selector_knows_images_as_their_files_are(arguments, tmp_path):
    out = tmp_path / "chosen.safetensors"
    options = ["--data", arguments["data"], "--epochs", "2", "--seed", "3"]
    run_cli("recipe", rejection.selector, rejection.study, argv=["selector", *options, "--out", str(out)])
    whole = measuring.originals(arguments["data"], "train", measuring.Form(32))
    assert whole.images_Nchw.shape == (30, 3, 32, 32)
    expected = train_judge(whole.images_Nchw, whole.labels_N, num_classes=10, epochs=2, seed=3).state_dict()
    found = Judge.load(out).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_one_classifier_cannot_choose_and_judge(arguments, monkeypatch):
    monkeypatch.setattr(rejection, "load", None)
    with pytest.raises(ValueError, match=r"selector = .*: is the judge itself; train another"):
        rejection.study(**{**arguments, "selector": arguments["judge"]})
