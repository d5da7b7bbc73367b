import json
from pathlib import Path

import pytest

from mvar.studies.page import markers
from recipes import collapse

pytestmark = pytest.mark.filterwarnings("ignore:.* are smaller than")
CHOSEN = ("all measures", "none of them")


def test_every_variant_is_trained_once_and_compared(few_images, tmp_path, monkeypatch):
    monkeypatch.setattr(collapse, "VARIANTS", {name: collapse.VARIANTS[name] for name in CHOSEN})
    monkeypatch.setattr(collapse, "IMAGES", 15)
    data, page = few_images(tmp_path / "data", 20, classes=2), tmp_path / "page.md"
    for image in Path(data).glob("val/*/*"):
        if image.stem > "0009":
            image.unlink()
    page.write_text("\n".join(("before", *markers("out"), "after")))
    arguments = {"data": data, "out": str(tmp_path / "out"), "runs": str(tmp_path / "runs"), "preset": "quick32"}
    arguments |= {"steps": 2, "batch_size": 2}
    report = collapse.study(**arguments, page_file=str(page))
    assert list(report["variants"]) == list(CHOSEN)
    assert all(result["step"] == 2 and len(result["used"]) == 5 for result in report["variants"].values())
    assert len({result["psnr"] for result in report["variants"].values()}) == 2
    assert 0 < report["real"] < min(result["distance"] for result in report["variants"].values())
    assert "| none of them |" in page.read_text()
    assert "PSNR and the codes used are measured on 20 validation images." in page.read_text()
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (written["validated"], written["compared"]) == (20, 15)

    monkeypatch.setattr(collapse, "train", None)  # nothing is trained again
    assert collapse.study(**arguments)["variants"] == report["variants"]
    for asked, message in (
        ({"data": "elsewhere"}, r"data = '.*elsewhere': runs = '.*all-measures' was started with '.*data'"),
        ({"preset": "tiny64"}, r"perceptual = 0.3: runs = '.*all-measures' was started with 1.0"),
        ({"steps": 4}, r"steps = 4: runs = '.*all-measures' was started with 2"),
    ):
        with pytest.raises(ValueError, match=rf"(?m)^{message}; give the same settings, or another runs$"):
            collapse.study(**{**arguments, **asked})
