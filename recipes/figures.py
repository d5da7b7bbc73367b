"""Figures of a trained model: how it uses its codes, and what a judge sees in its samples.

Shapes: K scales, C classes. Every function writes one PNG and draws without a display.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mvar.charts import BLUE, GREY, ORANGE, finish, new_figure, save


def scale_bars(report: Mapping[str, Any], path: Path) -> None:
    """For each scale: codes used and perplexity; with a generator also bits per token beside two bounds."""
    tokenizer, generator = report["tokenizer"], report.get("generator")
    names = [scale["map"] for scale in tokenizer["scales"]]
    figure = new_figure(10 if generator else 5.2, 3.6)
    axes_list = figure.subplots(1, 2 if generator else 1, squeeze=False)[0]
    series = {"used at least once": ("used", BLUE), "perplexity": ("perplexity", ORANGE)}
    _bars(axes_list[0], names, {label: [s[key] for s in tokenizer["scales"]] for label, (key, _) in series.items()})
    axes_list[0].axhline(tokenizer["vocab_size"], color=GREY, linestyle="--", label="vocabulary")
    finish(axes_list[0], "Codes used by the test images", "token map")
    if generator:
        bits = {"generator": generator["scales"], "code frequencies alone": generator["frequencies_alone"]}
        _bars(axes_list[1], names, bits)
        axes_list[1].axhline(generator["log2_vocab"], color=GREY, linestyle="--", label="log2 of the vocabulary")
        finish(axes_list[1], "Bits per token of the test images", "token map")
    for axes in axes_list:
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center")
    save(figure, path)


def confusion_matrix(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Share of each asked class (rows) that the judge takes for each class (columns), in percent."""
    counts_CC = np.asarray(counts, dtype=float)
    percent_CC = 100 * counts_CC / counts_CC.sum(1, keepdims=True).clip(min=1)
    C = len(names)
    figure = new_figure(2.2 + 0.55 * C, 1.6 + 0.5 * C)
    axes = figure.subplots()
    axes.imshow(percent_CC, cmap="Blues", vmin=0, vmax=100)
    for r, c in np.ndindex(C, C):
        value = percent_CC[r, c]
        if value >= 0.05:
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
