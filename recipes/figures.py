"""Tables and figures of a packaged model's page.

Shapes: C classes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mvar.charts import BLUE, GREY, ORANGE, new_figure, save, style_axes
from mvar.studies.distance import NAME
from mvar.studies.grid import TRIED
from mvar.studies.page import numbers, table
from recipes.shared import measured_on


def results(report: Mapping[str, Any]) -> str:
    """The tables of a report as Markdown."""
    measured = f"Measured in {report['minutes']:.1f} minutes on {measured_on(report['machine'])}."
    return "\n\n".join([_headline(report), _scales(report), _classes(report["samples"]), measured])


def settings(values: Mapping[str, Any]) -> str:
    """Sampling settings in words."""
    return ", ".join(f"{name.replace('_', '-')} {numbers(values[name])}" for name in TRIED)


def _headline(report: Mapping[str, Any]) -> str:
    tokenizer, generator, samples, distance = (report[k] for k in ("tokenizer", "generator", "samples", "distance"))
    real, restored, fine = samples["real"], samples["reconstructed"], tokenizer["from_3x3"]
    share = 100 * fine["used"] / tokenizer["vocab_size"]
    codes = f"**{fine['used']} of {tokenizer['vocab_size']}** ({share:.1f} %), perplexity {fine['perplexity']:.0f}"
    bits = f"**{generator['bits_per_token']:.3f}** of {generator['log2_vocab']:.2f}"
    kinds = {"real": "real training images", "reconstructed": "reconstructions", "samples": "samples"}
    rows = [
        *([f"Parameters of the {name}", f"{n / 1e6:.2f} M"] for name, n in report["model"]["parameters"].items()),
        *(
            [
                f"Training of the {name}, last stage",
                f"{run['steps']:,} steps of {run['batch_size']}, {run['minutes']:.0f} min",
            ]
            for name, run in report["training"].items()
        ),
        ["Test images", f"{tokenizer['images']:,}"],
        ["PSNR of reconstructions", f"**{tokenizer['psnr']:.2f} dB**"],
        ["Codes used by the maps from 3x3 up", codes],
        ["Bits per token, given the class", f"{bits} ({generator['bits_per_image']:.0f} per image)"],
        ["Bits per token by code frequencies alone", f"{generator['frequencies_alone_per_token']:.3f}"],
        ["Samples", f"{samples['images']:,}, {settings(samples['settings'])}"],
        ["Samples assigned to their class by the judge", f"**{_percent(samples['accuracy'])}**"],
        ["The judge on the real test images", _percent(real["accuracy"])],
        ["The judge on their reconstructions", _percent(restored["accuracy"])],
        ["Pixel distance within a class, samples / real", f"**{samples['spread_ratio']:.3f}**"],
        ["Pixel distance within a class, reconstructions / real", f"{restored['spread_ratio']:.3f}"],
        ["Seconds per image", f"{samples['seconds_per_image']:.4f} in batches of {samples['batch_size']}"],
        *(
            [
                f"{NAME} of {distance[kind]['images']:,} {name} against the {distance['reference']:,} test images",
                f"**{distance[kind]['value']:.1f}**",
            ]
            for kind, name in kinds.items()
        ),
    ]
    return table(["", ""], rows)


def _scales(report: Mapping[str, Any]) -> str:
    head = ["Token map", "Codes used", "Perplexity", "Bits per token", "Bits by frequencies alone"]
    columns = report["tokenizer"]["scales"], report["generator"]["scales"], report["generator"]["frequencies_alone"]
    rows = [
        [scale["map"], str(scale["used"]), f"{scale['perplexity']:.1f}", f"{bits:.3f}", f"{alone:.3f}"]
        for scale, bits, alone in zip(*columns, strict=True)
    ]
    return table(head, rows)


def _classes(samples: Mapping[str, Any]) -> str:
    head = ["Class", "Samples judged right", "Real images judged right", "Distance, samples / real"]
    columns = [samples["class_accuracy"], samples["real"]["class_accuracy"], samples["class_spread_ratio"]]
    rows = [
        [name, _percent(right), _percent(real), f"{ratio:.3f}"]
        for name, right, real, ratio in zip(samples["classes"], *columns, strict=True)
    ]
    return table(head, rows)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def plot(report: Mapping[str, Any], folder: Path) -> None:
    """Write scales.png and confusion.png."""
    _scale_bars(report, folder / "scales.png")
    _confusion_matrix(report["samples"]["confusion"], report["samples"]["classes"], folder / "confusion.png")


def _scale_bars(report: Mapping[str, Any], path: Path) -> None:
    """For each scale: codes used and perplexity, and bits per token beside two bounds."""
    tokenizer, generator = report["tokenizer"], report["generator"]
    scales = tokenizer["scales"]
    codes = {"used at least once": [s["used"] for s in scales], "perplexity": [s["perplexity"] for s in scales]}
    bits = {"generator": generator["scales"], "code frequencies alone": generator["frequencies_alone"]}
    panels = [
        ("Codes used by the test images", codes, tokenizer["vocab_size"], "vocabulary"),
        ("Bits per token of the test images", bits, generator["log2_vocab"], "log2 of the vocabulary"),
    ]
    figure = new_figure(10, 3.6)
    for axes, (title, series, bound, label) in zip(figure.subplots(1, 2), panels, strict=True):
        _bars(axes, [scale["map"] for scale in scales], series)
        axes.axhline(bound, color=GREY, linestyle="--", label=label)
        style_axes(axes, title, "token map")
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center")
    save(figure, path)


def _confusion_matrix(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """For each requested class (rows), the percentage that the judge assigns to each class (columns)."""
    counts_CC = np.asarray(counts, dtype=float)
    percent_CC = 100 * counts_CC / counts_CC.sum(1, keepdims=True).clip(min=1)
    C = len(names)
    figure = new_figure(2.2 + 0.55 * C, 1.6 + 0.5 * C)
    axes = figure.subplots()
    axes.imshow(percent_CC, cmap="Blues", vmin=0, vmax=100)
    for r, c in np.argwhere(percent_CC >= 0.05):
        value = percent_CC[r, c]
        colour = "white" if value > 50 else "black"
        axes.text(c, r, f"{value:.1f}" if value < 99.95 else "100", ha="center", va="center", color=colour, size=8)
    axes.set_xticks(range(C), names, rotation=40, ha="right")
    axes.set_yticks(range(C), names)
    axes.set_xlabel("class seen by the judge")
    axes.set_ylabel("class asked for")
    axes.set_title("Samples of each class as the judge sees them, %", loc="left", fontsize=11)
    save(figure, path)


def _bars(axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """Grouped bars with their values above."""
    width = 0.8 / len(series)
    for i, ((label, values), colour) in enumerate(zip(series.items(), (BLUE, ORANGE), strict=True)):
        places = [x + (i - (len(series) - 1) / 2) * width for x in range(len(names))]
        bars = axes.bar(places, values, width, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values], fontsize=7)
    axes.set_xticks(range(len(names)), names)
