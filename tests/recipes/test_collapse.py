import json
import shutil

import pytest
from PIL import Image

from mvar.recipes import collapse


@pytest.mark.filterwarnings("ignore:.* are smaller than")
def test_every_variant_is_trained_once_and_compared(fashion_arrays, tmp_path, monkeypatch, capsys):
    for split, images in (("train", fashion_arrays["train"][:2, :20]), ("val", fashion_arrays["val"][:2, :10])):
        for name, row in zip(("boot", "bag"), images, strict=True):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i, image in enumerate(row):
                Image.fromarray(image).save(tmp_path / "data" / split / name / f"{i}.png")
    chosen = ("all measures", "no start from data", "none of them")
    monkeypatch.setattr(collapse, "VARIANTS", {name: collapse.VARIANTS[name] for name in chosen})
    monkeypatch.setattr(collapse, "IMAGES", 15)
    page = tmp_path / "page.md"
    page.write_text("\n".join(("before", *collapse.page.markers("out"), "after")))
    arguments = {
        "data": str(tmp_path / "data"),
        "out": str(tmp_path / "out"),
        "runs": str(tmp_path / "runs"),
        "steps": 2,
        "batch_size": 4,
    }
    report = collapse.study(**arguments, page_file=str(page))
    assert list(report["variants"]) == list(chosen)
    assert all(result["step"] == 2 and len(result["used"]) == 6 for result in report["variants"].values())
    assert len({result["psnr"] for result in report["variants"].values()}) == 3
    assert 0 < report["real"] < min(result["distance"] for result in report["variants"].values())
    assert "| none of them |" in page.read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["compared"] == 15

    shutil.rmtree(tmp_path / "runs" / "none-of-them" / "checkpoints")  # as of a run that was killed early
    assert collapse.study(**arguments)["variants"] == report["variants"]

    monkeypatch.setattr(collapse, "train", None)  # nothing is trained again
    assert collapse.study(**arguments)["variants"] == report["variants"]
