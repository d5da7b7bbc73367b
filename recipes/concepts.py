"""How well a model of many classes draws: whether a classifier recognises its samples, and how new they are.


Novelty uses the measure by which near-duplicates were removed from the data set: the difference of two pictures' ink,
independent of position and size (`mvar.data.sets.icon_drawing`). Samples and held-out images are compared with the
nearest training image of any class.

Shapes: N M images, B images per batch, C classes, P pixels of a picture's shape, h w pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar.charts import BLUE, GREY, ORANGE, new_figure, save, style_axes
from mvar.data.sets.icon_drawing import nearest, shape_of_ink
from mvar.data.sets.icons import SAME
from mvar.data.workers import in_processes
from mvar.evaluation import intervals
from mvar.evaluation.images import Classifier
from mvar.progress import track
from mvar.sampling.engine import to_images
from mvar.sampling.sheet import class_sheet
from mvar.studies.measuring import Labelled
from mvar.studies.page import table
from mvar.text import counted
from recipes.figures import settings

PAIRS = 12  # of the sheet
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@torch.inference_mode()
def ranks(judge: Classifier, images: Labelled) -> Tensor:
    """The number of classes that the judge finds likelier than the right one, int64 (N,); 0 where it is right."""
    found = []
    for images_Bchw, labels_B in zip(images.images_Nchw.split(500), images.labels_N.split(500), strict=True):
        logits_BC = judge(images_Bchw.expand(-1, 3, -1, -1).float() / 255)
        found.append((logits_BC > logits_BC.gather(1, labels_B[:, None])).sum(1))
    return torch.cat(found)


def recognised(judge: Classifier, images: Labelled) -> dict[str, Any]:
    """How often the judge's first guess, and one of its first five, is right: for all images and for each class."""
    ranks_N, counts_C = ranks(judge, images), images.labels_N.bincount(minlength=len(images.classes))
    result: dict[str, Any] = {"images": len(ranks_N), "class_images": counts_C.tolist()}
    for name, most in (("top1", 1), ("top5", 5)):
        right_N = ranks_N < most
        right_C = images.labels_N[right_N].bincount(minlength=len(images.classes))
        shares = [right / n if n else None for right, n in zip(right_C.tolist(), counts_C.tolist(), strict=True)]
        result |= {name: float(right_N.double().mean()), f"class_{name}": shares}
    known = [share for share in result["class_top5"] if share is not None]
    return result | {"classes_mostly_recognised": sum(share > 0.5 for share in known) / len(known)}


def novelty(images_Nchw: Tensor, train_MP: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest training image of each image, int64 (N,), and the difference of their shapes, float (N,).

    An image without ink has the largest difference.
    """
    return nearest(shapes(images_Nchw), train_MP)


def shapes(images_Nchw: Tensor) -> np.ndarray:
    """The shapes by which pictures are compared, int16 (N, P); zeros where there is no ink."""
    ink_Nhw = 255 - images_Nchw.float().mean(1).round().byte().numpy()
    found = in_processes(shape_of_ink, list(ink_Nhw))
    return np.stack(list(track(found, len(ink_Nhw), "comparing pictures")))


def novelty_report(samples: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Distances of samples and of held-out images to their nearest training image."""
    return {
        name: {
            "images": len(distances),
            "quantiles": dict(zip(map(str, QUANTILES), np.quantile(distances, QUANTILES).tolist(), strict=True)),
            "copies": float((distances < SAME).mean()),
        }
        for name, distances in (("samples", samples), ("held out", held_out))
    }


def nearest_pairs(samples: Labelled, train: Labelled, nearest_N: np.ndarray, distances: np.ndarray) -> Image.Image:
    """The samples that are nearest to a training image, each above that image."""
    chosen = np.argsort(distances, kind="stable")[:PAIRS]
    rows = [
        ("sample", to_images(samples.images_Nchw[chosen].expand(-1, 3, -1, -1) / 255)),
        ("nearest in training", to_images(train.images_Nchw[nearest_N[chosen]].expand(-1, 3, -1, -1) / 255)),
    ]
    return class_sheet(rows)


def plot_novelty(samples: np.ndarray, held_out: np.ndarray, path: Path) -> None:
    """Histograms of the distances of samples and of held-out images to their nearest training image."""
    figure = new_figure(7, 3.4)
    axes = figure.subplots()
    bins = np.linspace(0, max(samples.max(), held_out.max()), 60).tolist()
    for name, distances, colour in (("held-out icons", held_out, GREY), ("samples", samples, BLUE)):
        axes.hist(distances, bins, density=True, alpha=0.6, color=colour, label=f"{name}, N = {len(distances):,}")
    axes.axvline(SAME, color=ORANGE, linestyle="--", label="the same picture")
    axes.legend(fontsize=8, frameon=False)
    style_axes(axes, "Difference to the nearest training icon", "share of the ink")
    save(figure, path)


def results(report: Mapping[str, Any]) -> str:
    """Tables of the report: a summary, and all concepts, best first."""
    samples, held_out = (report["recognised"][name] for name in ("samples", "held_out"))
    ours, others = (report["novelty"][name] for name in ("samples", "held out"))
    rows = [
        ["Images", f"{samples['images']:,}", f"{held_out['images']:,}"],
        *(
            [f"Recognised: {text}", *(_interval(part[key], part["images"]) for part in (samples, held_out))]
            for key, text in (("top1", "first guess"), ("top5", "among the first five"))
        ),
        [
            "Concepts recognised in most images (first five)",
            *(_percent(p["classes_mostly_recognised"]) for p in (samples, held_out)),
        ],
        ["Distance to the nearest training icon, median", *(f"{p['quantiles']['0.5']:.3f}" for p in (ours, others))],
        ["The same, 5th percentile", *(f"{p['quantiles']['0.05']:.3f}" for p in (ours, others))],
        [f"Copies of a training icon (distance below {SAME:g})", *(_percent(p["copies"]) for p in (ours, others))],
    ]
    machine = report["machine"]
    note = (
        f"Samples with {settings(report['settings'])}, seed {report['seed']}; {report['seconds_per_image']:.2f} s per "
        f"image ({counted(machine['threads'], 'thread')}, {machine['processor']}, torch {machine['torch']}). "
        "90 % intervals in brackets."
    )
    head = ["Concept", "Samples, first guess", "first five", "Held-out icons, first five"]
    return "\n\n".join(
        [
            table(["", "Samples", "Held-out icons"], rows),
            note,
            table(head, by_concept(report["classes"], samples, held_out)),
        ]
    )


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{100 * share:.0f} %"


def _interval(value: float, images: int) -> str:
    around = intervals.share(value, images)
    return f"{_percent(value)} ({_percent(around.low)} to {_percent(around.high)})"


def by_concept(classes: Sequence[str], samples: dict[str, Any], held_out: dict[str, Any]) -> list[list[str]]:
    """A row for each class, best first: the fraction recognised of its samples and of its real images."""
    order = sorted(range(len(classes)), key=lambda c: (-samples["class_top5"][c], -samples["class_top1"][c], c))
    shares = (samples["class_top1"], samples["class_top5"], held_out["class_top5"])
    return [[classes[c], *(_percent(share_C[c]) for share_C in shares)] for c in order]
