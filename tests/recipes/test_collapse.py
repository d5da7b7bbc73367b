import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mvar.training.stopping import Stopped
from mvar.training.tokenizer.task import train
from recipes import collapse
from recipes.shared import markers

pytestmark = pytest.mark.filterwarnings("ignore:.* are smaller than")
CHOSEN = ("all measures", "none of them")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Two variants, and distances of fewer images than there are for validation."""
    monkeypatch.setattr(collapse, "VARIANTS", {name: collapse.VARIANTS[name] for name in CHOSEN})
    monkeypatch.setattr(collapse, "IMAGES", 15)


@pytest.fixture(scope="module")
def arguments(few_images, tmp_path_factory):
    """Arguments of the study except `runs`: 40 training and 20 validation images."""
    root = tmp_path_factory.mktemp("collapse")
    data = few_images(root / "data", 20, classes=2)
    for image in Path(data).glob("val/*/*"):
        if image.stem > "0009":
            image.unlink()
    return {"data": data, "out": str(root / "out"), "preset": "quick32", "steps": 3, "batch_size": 4}


@pytest.fixture(scope="module")
def begun(arguments, tmp_path_factory):
    """Runs of which the first was interrupted after two of three steps, and the other not started."""
    runs = tmp_path_factory.mktemp("begun") / "runs"

    def stopped(config):
        return train(replace(config, log_every=1), callbacks=[lambda step, _: step == 1])  # it stops after the next

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collapse, "train", stopped)
        with pytest.raises(Stopped):
            collapse.study(**arguments, runs=str(runs))
    return runs


def test_every_variant_is_trained_once_and_compared(arguments, begun, tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("\n".join(("before", *markers("out"), "after")))
    runs = tmp_path / "runs"
    report = collapse.study(**arguments, runs=str(runs), page_file=str(page))
    assert list(report["variants"]) == list(CHOSEN)
    assert all(result["step"] == 3 and len(result["used"]) == 5 for result in report["variants"].values())
    assert len({result["psnr"] for result in report["variants"].values()}) == 2
    assert 0 < report["real"] < min(result["distance"] for result in report["variants"].values())
    assert "| none of them |" in page.read_text()
    assert "PSNR and the codes used are measured on 20 validation images." in page.read_text()
    written = json.loads((Path(arguments["out"]) / "report.json").read_text())
    assert (written["validated"], written["compared"]) == (20, 15)

    goes_on = shutil.copytree(begun, tmp_path / "begun")  # one half done, one done
    shutil.copytree(runs / "none-of-them", goes_on / "none-of-them")
    trained = []
    monkeypatch.setattr(collapse, "train", lambda config: trained.append(config.out) or train(config))
    assert collapse.study(**arguments, runs=str(goes_on))["variants"] == report["variants"]
    assert trained == [str(goes_on / "all-measures")]
    starts = json.loads((goes_on / "all-measures" / "environment.json").read_text())["starts"]
    assert [start["from_step"] for start in starts] == [0, 2]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"data": "elsewhere"}, r"data = '.*elsewhere': runs = '.*all-measures' was started with '.*data'"),
        ({"preset": "tiny64"}, r"perceptual = 0.3: runs = '.*all-measures' was started with 1.0"),
        ({"steps": 4}, r"steps = 4: runs = '.*all-measures' was started with 3"),
    ],
)
def test_runs_of_other_settings_are_refused(asked, message, arguments, begun, monkeypatch):
    monkeypatch.setattr(collapse, "train", None)
    with pytest.raises(ValueError, match=rf"(?m)^{message}; give the same settings, or another runs$"):
        collapse.study(**{**arguments, **asked}, runs=str(begun))
