"""How well editing fills a hole: both modes on held-out images, by distance from the hole.

    python -m recipes.editing --model fashion-mnist --data data/fashion-mnist --out docs/images/editing \
        --page-file docs/editing.md --sheet docs/images/editing.png

A few minutes on two cores. Expected: "reencode" is closer to the image than "own" outside the hole; "own" is closer
inside, where its coarse tokens still describe what was there.
"""

import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from mvar.data.images.decoding import as_image
from mvar.data.images.folders import ImageFolder
from mvar.data.views import fitted
from mvar.files import writable_folder
from mvar.machine import machine
from mvar.model import Model, load
from mvar.progress import track
from mvar.sampling.config import EditMode
from mvar.sampling.export import save_image
from mvar.sampling.masks import distance, read_hole
from mvar.sampling.sheet import class_sheet, with_hole
from mvar.studies.measuring import subset
from mvar.studies.page import table as markdown
from recipes.shared import measured_on, publish, run_cli

SHOWN = 4  # results per row of the sheet
RINGS = ((1, 1), (2, 2), (3, 4), (5, 8))  # distances from the hole, in pixels of the model


def holes(shape: tuple[int, int]) -> dict[str, Tensor]:
    """The holes that are tried on images of this size."""
    H, W = shape
    return {
        "a box in the middle": read_hole(shape, box=(3 * W // 8, 3 * H // 8, 3 * W // 4, 3 * H // 4)),
        "the right half": read_hole(shape, box=(W // 2, 0, W, H)),
        "all but the middle": read_hole(shape, keep_box=(W // 4, H // 4, 3 * W // 4, 3 * H // 4)),
    }


def compare(
    model: str,
    data: str,
    out: str,
    images: int = 200,
    n: int = 2,
    seed: int = 0,
    page_file: str | None = None,
    sheet: str | None = None,
) -> dict[str, Any]:
    """Edit held-out images in both modes and measure how far the results are from them; writes report.json.

    Args:
        model: with a generator.
        data: folder with val/<class>.
        out: folder to write into.
        images: how many to use at most, evenly spaced.
        n: results for each image, hole and mode.
        seed: of the results.
        page_file: documentation page to fill in.
        sheet: picture to write: images of some classes, their holes, and results of the default mode.
    """
    folder, loaded = writable_folder(out, "out"), load(model)
    index = subset(ImageFolder.scan(Path(data) / "val"), images)
    pictures = [as_image(path) for path in index.paths]
    labels = loaded.label_ids([index.classes[label] for label in index.labels])
    start = time.perf_counter()
    rows = []
    for name, hole_HW in holes(loaded.tokenizer.config.image_shape).items():
        for mode in get_args(EditMode):
            rows.append({"hole": name, "mode": mode, **_measured(loaded, pictures, labels, hole_HW, mode, n, seed)})
            print(rows[-1], flush=True)
    report = {
        "images": len(pictures),
        "results": n,
        "seed": seed,
        "rows": rows,
        "minutes": (time.perf_counter() - start) / 60,
        "machine": machine(),
    }
    publish(report, folder, table(report), page_file)
    if sheet is not None:
        save_image(_sheet(loaded, pictures, labels, seed), sheet, "sheet")
    return report


def _sheet(loaded: Model, pictures: Sequence[Image.Image], labels: Sequence[int], seed: int) -> Image.Image:
    """A row for each hole in the first image of every third class: the image, its hole, and results."""
    shape = loaded.tokenizer.config.image_shape
    rows = []
    for (name, hole_HW), c in zip(holes(shape).items(), range(0, len(loaded.classes), 3), strict=False):
        picture = pictures[labels.index(c)].resize((shape[1], shape[0]), Image.Resampling.LANCZOS)
        out = loaded.edit(picture, hole_HW, label=c, n=SHOWN, seed=seed)
        rows.append((name, [picture, with_hole(picture, hole_HW), *out.images]))
    return class_sheet(rows)


def _measured(
    loaded: Model,
    pictures: Sequence[Image.Image],
    labels: Sequence[int],
    hole_HW: Tensor,
    mode: EditMode,
    n: int,
    seed: int,
) -> dict[str, Any]:
    """Mean absolute error in 8-bit levels inside the hole and in rings around it, and the mean step across its border.

    The tokenizer's own error in the rings and the image's own step are the baselines.
    """
    shape = loaded.tokenizer.config.image_shape
    steps_HW = distance(hole_HW)
    error_HW, alone_HW = torch.zeros(shape), torch.zeros(shape)
    step = own_step = 0.0
    for number, (picture, label) in enumerate(track(list(zip(pictures, labels, strict=True)), len(pictures), mode)):
        sized = picture.resize((shape[1], shape[0]), Image.Resampling.LANCZOS)
        results = range(number * n, number * n + n)
        edited = loaded.edit(sized, hole_HW, label=label, n=n, mode=mode, seed=seed, index=results)
        pixels_3HW = fitted(sized, shape)
        error_HW += (edited.pixels - pixels_3HW).abs().mean((0, 1)) * 255 / len(pictures)
        step += _step(edited.pixels, hole_HW) / len(pictures)
        own_step += _step(pixels_3HW[None], hole_HW) / len(pictures)
        restored_3HW = loaded.tokenizer.reconstruct(pixels_3HW[None].to(loaded.device))[0].cpu()
        alone_HW += (restored_3HW - pixels_3HW).abs().mean(0) * 255 / len(pictures)
    rings = [(steps_HW >= near) & (steps_HW <= far) for near, far in RINGS]
    return {
        "inside": float(error_HW[hole_HW].mean()),
        "border_step": step,
        "border_step_of_image": own_step,
        "rings": [float(error_HW[ring_HW].mean()) for ring_HW in rings],
        "tokenizer": [float(alone_HW[ring_HW].mean()) for ring_HW in rings],
    }


def _step(pixels_B3HW: Tensor, hole_HW: Tensor) -> float:
    """Mean absolute difference of neighbours, one in the hole and one outside, in 8-bit levels."""
    down, right = hole_HW[1:] != hole_HW[:-1], hole_HW[:, 1:] != hole_HW[:, :-1]
    steps = torch.cat([pixels_B3HW.diff(dim=2)[:, :, down].flatten(), pixels_B3HW.diff(dim=3)[:, :, right].flatten()])
    return float(steps.abs().mean()) * 255


def table(report: dict[str, Any]) -> str:
    """The report as Markdown: for each hole both modes, and the tokenizer alone."""
    names = [f"{near}" if near == far else f"{near}-{far}" for near, far in RINGS]
    head = ["Hole", "Mode", "Inside", *(f"{name} px outside" for name in names), "Step at the border"]
    rows: list[list[str]] = []
    for hole, group in groupby(report["rows"], key=lambda row: row["hole"]):
        for row in group:
            values = (row["inside"], *row["rings"], row["border_step"])
            rows.append([hole, f"`{row['mode']}`", *(f"{v:.2f}" for v in values)])
        own_step = f"{row['border_step_of_image']:.2f} (the image)"
        rows.append([hole, "tokenizer alone", "", *(f"{v:.2f}" for v in row["tokenizer"]), own_step])
    return (
        f"{markdown(head, rows)}\n\n{report['images']} held-out images, {report['results']} results each, given their "
        f"class; mean absolute error in 8-bit levels. Measured in {report['minutes']:.1f} minutes on "
        f"{measured_on(report['machine'])}."
    )


if __name__ == "__main__":
    run_cli("python -m recipes.editing", compare)
