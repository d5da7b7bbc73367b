"""How well the packaged model's likelihoods tell the class of test images, and which maps tell it.

    python -m recipes.likelihood --model fashion-mnist --data data/fashion-mnist --out docs/images/likelihood \
        --page-file docs/likelihood.md

Some minutes on two cores; the page has what came out.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mvar.data.images.folders import ImageFolder
from mvar.data.order import evenly_spaced
from mvar.data.source import PixelSource
from mvar.files import writable_folder
from mvar.machine import machine
from mvar.model import load
from mvar.progress import track
from mvar.sampling.likelihood import class_log_probs
from mvar.studies import measuring, page
from recipes.cli import run_cli

BATCH = 50


def measure(model: str, data: str, out: str, images: int = 1000, page_file: str | None = None) -> dict[str, Any]:
    """Classify held-out images by Bayes' rule with a uniform prior; writes report.json.

    Args:
        model: with a generator and classes.
        data: folder with val/<class>.
        out: folder to write into.
        images: at most so many, evenly spaced.
        page_file: documentation page whose table is filled in.
    """
    folder, loaded = writable_folder(out, "out"), load(model)
    if loaded.generator is None:
        raise ValueError(f"model = {model!r}: has no generator to measure")
    index = ImageFolder.scan(Path(data) / "val")
    chosen = evenly_spaced(len(index.paths), images)
    some = replace(index, paths=[index.paths[i] for i in chosen], labels=[index.labels[i] for i in chosen])
    source = PixelSource.read(some, loaded.tokenizer.config.image_shape, resize_factor=1.0)
    labels_N = torch.tensor(loaded.label_ids(index.classes))[source.labels]

    start = time.perf_counter()
    parts = []
    batches = torch.arange(len(source)).split(BATCH)
    for rows_B in track(batches, len(batches), "batches"):
        maps = loaded.tokenizer.encode(source.batch(rows_B)[0].to(loaded.device) / 255)
        parts.append(class_log_probs(loaded.tokenizer, loaded.generator, maps))
    log_prob_NCK = torch.cat(parts)
    seconds = time.perf_counter() - start
    right_NK = log_prob_NCK.cumsum(2).argmax(1) == labels_N[:, None]  # by the first maps only, up to each
    alone_NK = log_prob_NCK.argmax(1) == labels_N[:, None]  # by each map alone, given the coarser ones
    own_NK = log_prob_NCK[torch.arange(len(labels_N)), labels_N]
    bits_K = -own_NK.mean(0) / torch.tensor(loaded.tokenizer.config.schedule.areas) / torch.tensor(2.0).log()
    report = {
        "images": len(source),
        "accuracy": float(right_NK[:, -1].float().mean()),
        "class_accuracy": {
            name: float(right_NK[labels_N == c, -1].float().mean()) for c, name in enumerate(loaded.classes)
        },
        "scales": [
            {"map": name, "up_to": float(up_to), "alone": float(alone), "bits": float(bits)}
            for name, up_to, alone, bits in zip(
                measuring.scale_names(loaded), right_NK.float().mean(0), alone_NK.float().mean(0), bits_K, strict=True
            )
        ],
        "seconds_per_image": seconds / len(source),
        "machine": machine(),
    }
    page.write_json(folder / "report.json", report)
    print(table(report))
    if page_file is not None:
        page.fill(page_file, table(report))
    return report


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    head = ["Map", "Right, by the maps up to this one", "Right, by this map alone", "Bits per token"]
    rows = [
        [s["map"], f"{100 * s['up_to']:.1f} %", f"{100 * s['alone']:.1f} %", f"{s['bits']:.3f}"]
        for s in report["scales"]
    ]
    classes = ", ".join(f"{name} {100 * share:.0f} %" for name, share in report["class_accuracy"].items())
    machine = report["machine"]
    return (
        f"{page.table(head, rows)}\n\n**{100 * report['accuracy']:.1f} %** of {report['images']:,} test images are "
        f"classified right by all maps: {classes}. {report['seconds_per_image']:.3f} s an image on {machine['cores']} "
        f"cores ({machine['processor']}, torch {machine['torch']})."
    )


if __name__ == "__main__":
    run_cli(measure, "python -m recipes.likelihood")
