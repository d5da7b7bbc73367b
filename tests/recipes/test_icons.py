import json

import numpy as np
import pytest
from PIL import Image

from mvar.features.judge import Judge
from mvar.studies.page import markers
from recipes import concepts
from recipes.icons import Icons


def test_page_credits_and_sheet(tmp_path):
    drawn = {"train": {"bell": 26, "train": 14, "unseen": 3}, "val": {"bell": 1, "train": 2}}
    for split, of_split in drawn.items():
        for name, n in of_split.items():
            folder = tmp_path / "icons" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("L", (16, 16), 100 if name == "bell" else 200).save(folder / f"{split}-{i}_icon.png")
                Image.new("L", (16, 16), 50).save(folder / f"{split}-{i}_other.png")  # of the same set
    (tmp_path / "icons" / "LICENCES.md").write_text("# Whose é\n", encoding="utf-8")
    (tmp_path / "page.md").write_text("\n".join(("Before", *markers(), "after\n")))
    files = [str(tmp_path / name) for name in ("icons", "page.md", "credits.md", "sheet.png")]
    Icons().describe(*files)
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    for line in (
        "| 25 or more | 1 | 52 | 2 |",
        "| 15 to 24 | 1 | 28 | 4 |",
        "| fewer | 1 | 6 | 0 |",
        "| together | 3 | 86 | 6 |",
        "Drawn by 15 to 24: train.",
        "Without images for validation: unseen.",
    ):
        assert f"\n{line}\n" in text
    assert (tmp_path / "credits.md").read_text(encoding="utf-8") == "# Whose é\n"
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert {50, 100, 200} <= {shade for _, shade in sheet.getcolors(1 << 24)}


def icon(left: int, height: int) -> Image.Image:
    """A black box on white."""
    pixels = np.full((64, 64), 255, np.uint8)
    pixels[20 : 20 + height, left : left + 10] = 0
    return Image.fromarray(pixels)


@pytest.fixture
def data(tmp_path):
    """Boxes of two classes to train on; held out is a copy of one, moved aside, and no dog."""
    for split, name, pictures in (
        ("train", "cat", [icon(5, 10), icon(5, 20)]),
        ("train", "dog", [icon(5, 30), icon(5, 40)]),
        ("val", "cat", [icon(30, 20)]),
    ):
        folder = tmp_path / split / name
        folder.mkdir(parents=True)
        for i, picture in enumerate(pictures):
            picture.save(folder / f"{i}.png")
    Judge(2, channels=1).eval().save(tmp_path / "judge.safetensors")
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*has no images")
def test_samples_and_held_out_icons_are_measured_alike(bundle, data, tmp_path):
    out = tmp_path / "out"
    report = Icons().measure(bundle, str(data), str(data / "judge.safetensors"), str(out), samples_per_class=2)
    samples, held_out = (report["recognised"][name] for name in ("samples", "held_out"))
    assert (samples["images"], samples["class_images"]) == (4, [2, 2])
    assert (held_out["images"], held_out["class_images"]) == (1, [1, 0])
    assert held_out["class_top5"] == [1.0, None]
    assert samples["top1"] == sum(samples["class_top1"]) / 2
    assert report["novelty"]["held out"]["copies"] == 1
    assert report["novelty"]["held out"]["quantiles"]["0.5"] == 0
    assert json.loads((out / "report.json").read_text())["recognised"] == report["recognised"]
    for name in ("novelty.png", "nearest.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 60
    table = concepts.results(report)
    assert "| Copies of a training icon (distance below 0.16) |" in table
    assert "| dog |" in table
