"""What each measure against codebook collapse does: a tokenizer with all of them, and with one left out at a time.

    python -m recipes.collapse --data data/fashion-mnist --preset tiny32 --runs runs/collapse-fashion-mnist \
        --out docs/images/collapse/fashion-mnist --page-file docs/collapse.md

Same seed, same steps, same images. A finished run is not trained again, an interrupted one is resumed, and one with
other settings is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mvar.charts import BLUE, new_figure, save, style_axes
from mvar.data.source import PixelSource
from mvar.data.splits import open_splits
from mvar.files import writable_folder
from mvar.job import check_same
from mvar.machine import machine
from mvar.model import Model, load
from mvar.studies.distance import IMAGES, NAME, Distance
from mvar.studies.measuring import batches
from mvar.studies.page import read_json
from mvar.studies.page import table as markdown
from mvar.training.config import TokenizerTraining
from mvar.training.run import checkpoints
from mvar.training.run.folder import METRICS, SETTINGS
from mvar.training.tokenizer.task import train
from recipes.shared import publish, run_cli

# Settings that do not affect the results of a run.
INDIFFERENT = {
    "out", "resume", "workers", "rank_timeout", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints",
}  # fmt: skip
# What is left out of the full recipe.
VARIANTS: dict[str, dict[str, Any]] = {
    "no start from data": {"start_from_data": False},
    "no revival": {"revive_until": 0.0},
    "no quantiser dropout": {"scale_dropout": 0.0},
    "no weight average": {"ema": 0.0},
    "discriminator from the start": {"adversarial_start": 0.0},
    "no discriminator": {"adversarial": 0.0},
    "no perceptual loss": {"perceptual": 0.0},
}
_LEFT_OUT = {name: value for changes in VARIANTS.values() for name, value in changes.items()}
del _LEFT_OUT["adversarial_start"]  # there is no discriminator to start
VARIANTS = {"all measures": {}, **VARIANTS, "none of them": _LEFT_OUT}


def study(
    data: str,
    out: str,
    runs: str,
    preset: str = "tiny32",
    steps: int = 400,
    batch_size: int = 16,
    seed: int = 0,
    page_file: str | None = None,
) -> dict[str, Any]:
    """Train every variant and write report.json and figures.

    Args:
        data: folder of images.
        out: folder to write into.
        runs: folder of the runs; existing ones must have the same settings.
        preset: of the tokenizer.
        steps: optimizer steps of each run.
        batch_size: images per optimizer step.
        seed: of all runs.
        page_file: documentation page to fill in, between the markers named like the last part of `out`.

    Returns:
        The contents of report.json.

    Raises:
        ValueError: an existing run has other settings, one line each; raised before any training.
    """
    folder = writable_folder(out, "out")
    configs = _trained(runs, preset, {"data": data, "steps": steps, "batch_size": batch_size, "seed": seed})
    config = configs["all measures"]
    results = {name: _validation(Path(config.out)) for name, config in configs.items()}
    train_images, val_images = open_splits(data, config.model.image_shape, resize_factor=config.resize_factor)
    if not isinstance(train_images, PixelSource):
        raise ValueError(f"data = {data!r}: is a stream; give a folder or local shards")
    distance = Distance(_pixels(val_images))
    for name, result in results.items():
        result["distance"] = distance.of(_restored(load(configs[name].out), val_images.at_most(IMAGES)))
    report = {
        "preset": preset,
        "steps": steps,
        "batch_size": batch_size,
        "seed": seed,
        "images": len(train_images),
        "validation_images": len(val_images),
        "validated": min(config.val_images or len(val_images), len(val_images)),
        "compared": min(IMAGES, len(val_images)),
        "real": distance.of(_pixels(train_images.at_most(IMAGES))),
        "maps": [f"{h}x{w}" for h, w in config.model.schedule.shapes],
        "variants": results,
        "machine": machine(),
    }
    plot(report, folder / "collapse.png")
    publish(report, folder, table(report), page_file, folder.name)
    return report


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    head = ["Run", "PSNR, dB", NAME, *(f"codes used at {name}" for name in report["maps"])]
    rows = [
        [
            name,
            f"{result['psnr']:.2f}",
            f"{result['distance']:.1f}",
            *(f"{100 * share:.0f} %" for share in result["used"]),
        ]
        for name, result in report["variants"].items()
    ]
    return (
        f"{markdown(head, rows)}\n\n"
        f"Preset `{report['preset']}`, {report['steps']:,} steps of {report['batch_size']}, seed {report['seed']}; "
        f"{report['images']:,} training and {report['validation_images']:,} validation images. PSNR and the codes "
        f"used are measured on {report['validated']:,} validation images. {NAME} compares {report['compared']:,} "
        f"reconstructions with all validation images; the same number of real training images has {report['real']:.1f}."
    )


def plot(report: Mapping[str, Any], path: Path) -> None:
    """PSNR and distance as bars, and the share of codes used by each map as shades."""
    names = list(report["variants"])
    results = list(report["variants"].values())
    figure = new_figure(13, 0.5 * len(names) + 1)
    bars_psnr, bars_distance, shades = figure.subplots(1, 3, sharey=True)
    for axes, key, title in ((bars_psnr, "psnr", "PSNR, dB"), (bars_distance, "distance", NAME)):
        bars = axes.barh(names, [result[key] for result in results], color=BLUE)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
        axes.margins(x=0.15)
        style_axes(axes, title, "")
    used = [result["used"] for result in results]
    shades.imshow(used, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, shares in enumerate(used):
        for column, share in enumerate(shares):
            colour = "white" if share > 0.5 else "black"
            shades.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, size=8)
    style_axes(shades, "Codes used by each map, %", "token map")
    shades.grid(False)
    shades.set_xticks(range(len(report["maps"])), report["maps"])
    save(figure, path)


def _trained(runs: str, preset: str, shared: dict[str, Any]) -> dict[str, TokenizerTraining]:
    """The settings of every variant's run, once all runs are complete."""
    every = {"validate_every": shared["steps"], "checkpoint_every": shared["steps"]}
    configs = {}
    for name, changes in VARIANTS.items():
        run = Path(runs) / name.replace(" ", "-")
        begun = checkpoints.exist(run)
        configs[name] = TokenizerTraining.preset(preset, out=str(run), resume=begun, **shared, **every, **changes)
        if begun:
            before = read_json(run / SETTINGS, "runs")
            check_same(_settings(before), _settings(asdict(configs[name])), "runs", run)
    for config in configs.values():
        if not any(found.step == config.steps for found in checkpoints.complete(Path(config.out))):
            train(config)
    return configs


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that affect the results of a run."""
    kept = {name: value for name, value in config.items() if name not in INDIFFERENT}
    return {**kept, "data": str(Path(kept.get("data", "")).resolve())}


def _validation(run: Path) -> dict[str, Any]:
    """The last validation of a run: step, psnr, used, perplexity and residual energy of each scale."""
    lines = (run / METRICS).read_text(encoding="utf-8").splitlines()
    last = [record for record in map(json.loads, lines) if "val_psnr" in record][-1]
    by_scale = {name: last[name] for name in ("used", "perplexity", "residual_energy")}
    return {"step": last["step"], "psnr": last["val_psnr"], **by_scale}


def _pixels(images: PixelSource) -> torch.Tensor:
    """All images as the tokenizer sees them, uint8 (N, 3, h, w)."""
    return torch.cat([images.batch(rows_B)[0] for rows_B in batches(len(images), "reading images")])


def _restored(model: Model, images: PixelSource) -> torch.Tensor:
    """Images after a round trip through the tokenizer, uint8 (N, 3, h, w)."""
    restored = []
    for rows_B in batches(len(images), "reconstructing images"):
        pixels_B3hw = images.batch(rows_B)[0].to(model.device) / 255
        restored.append((model.tokenizer.reconstruct(pixels_B3hw) * 255).round().to(torch.uint8).cpu())
    return torch.cat(restored)


if __name__ == "__main__":
    run_cli("python -m recipes.collapse", study)
