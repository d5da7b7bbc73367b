"""How well the packaged model's likelihoods tell the class of test images, and which maps tell it.

    python -m recipes.likelihood --model fashion-mnist --data data/fashion-mnist --out docs/images/likelihood \
        --page-file docs/likelihood.md

A few minutes on two cores; the page has the results.

Shapes: N images, C classes, K scales.
"""

import time
from pathlib import Path
from typing import Any

import torch

from mvar.data.images.folders import ImageFolder
from mvar.data.source import PixelSource
from mvar.files import writable_folder
from mvar.machine import machine
from mvar.sampling.likelihood import class_log_probs
from mvar.studies.measuring import batches, load_with_generator, subset
from mvar.studies.page import table as markdown
from recipes.measures import scale_names
from recipes.shared import measured_on, publish, run_cli

BATCH = 50


def measure(model: str, data: str, out: str, images: int = 1000, page_file: str | None = None) -> dict[str, Any]:
    """Classify held-out images by Bayes' rule with a uniform prior; writes report.json.

    Args:
        model: with a generator and classes.
        data: folder with val/<class>.
        out: folder to write into.
        images: how many to use at most, evenly spaced.
        page_file: documentation page to fill in.
    """
    folder, loaded = writable_folder(out, "out"), load_with_generator(model)
    assert loaded.generator is not None
    config = loaded.tokenizer.config
    index = subset(ImageFolder.scan(Path(data) / "val"), images)
    source = PixelSource.read(index, config.image_shape, resize_factor=1.0)
    labels_N = torch.tensor(loaded.label_ids(index.classes))[source.labels]

    start = time.perf_counter()
    parts = []
    for rows_B in batches(len(source), "batches", BATCH):
        maps = loaded.tokenizer.encode(source.batch(rows_B)[0].to(loaded.device) / 255)
        parts.append(class_log_probs(loaded.tokenizer, loaded.generator, maps))
    log_prob_NCK = torch.cat(parts)
    seconds = time.perf_counter() - start
    right_NK = log_prob_NCK.cumsum(2).argmax(1) == labels_N[:, None]  # by all maps up to each
    alone_NK = log_prob_NCK.argmax(1) == labels_N[:, None]  # by each map alone, given the coarser ones
    own_NK = log_prob_NCK[torch.arange(len(labels_N)), labels_N]
    bits_K = -own_NK.mean(0) / torch.tensor(config.schedule.areas) / torch.tensor(2.0).log()
    columns = [values.tolist() for values in (right_NK.float().mean(0), alone_NK.float().mean(0), bits_K)]
    report = {
        "images": len(source),
        "accuracy": float(right_NK[:, -1].float().mean()),
        "class_accuracy": {
            name: float(right_NK[labels_N == c, -1].float().mean()) for c, name in enumerate(loaded.classes)
        },
        "scales": [
            dict(zip(("map", "up_to", "alone", "bits"), row, strict=True))
            for row in zip(scale_names(loaded), *columns, strict=True)
        ],
        "seconds_per_image": seconds / len(source),
        "machine": machine(),
    }
    publish(report, folder, table(report), page_file)
    return report


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = ["Map", "Right, by the maps up to this one", "Right, by this map alone", "Bits per token"]
    rows = [
        [s["map"], f"{100 * s['up_to']:.1f} %", f"{100 * s['alone']:.1f} %", f"{s['bits']:.3f}"]
        for s in report["scales"]
    ]
    classes = ", ".join(f"{name} {100 * share:.0f} %" for name, share in report["class_accuracy"].items())
    return (
        f"{markdown(head, rows)}\n\nAll maps together classify **{100 * report['accuracy']:.1f} %** of "
        f"{report['images']:,} test images correctly: {classes}. {report['seconds_per_image']:.3f} s per image on "
        f"{measured_on(report['machine'])}."
    )


if __name__ == "__main__":
    run_cli("python -m recipes.likelihood", measure)
