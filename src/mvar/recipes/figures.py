"""Figures of a trained model: its training curves, how it uses its codes, and what a judge sees in its samples.

Shapes: K scales, C classes. Every function writes one PNG and draws without a display.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvar.files import atomic_write

BLUE, ORANGE, GREY = "#2a6fbb", "#d9822b", "#8a8f98"
Records = Sequence[Mapping[str, Any]]


def training_curves(records: Records, panels: Mapping[str, Sequence[str]], scales: Sequence[str], path: Path) -> None:
    """Metrics over the steps of a run, a panel for each title.

    Args:
        records: the lines of metrics.jsonl; a metric is a number, or a list with one for each scale.
        panels: title -> names of the metrics in it.
        scales: names of the scales.
        path: of the PNG.
    """
    figure = _figure(4.2 * len(panels), 3.4)
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        late: list[float] = []
        for name, colour in zip(names, (BLUE, ORANGE), strict=False):
            known = [record for record in records if name in record]
            steps, values = [record["step"] for record in known], [record[name] for record in known]
            if known and isinstance(values[0], list):
                for label, line, shade in zip(scales, zip(*values, strict=True), _shades(len(scales)), strict=True):
                    axes.plot(steps, line, color=shade, label=label)
                    late += line
            else:
                axes.plot(steps, values, color=colour, label=name)
                late += values[len(values) // 50 :]  # the first steps would flatten the rest
        _finish(axes, title, "step")
        if late:
            margin = 0.05 * (max(late) - min(late)) or 0.1
            axes.set_ylim(min(late) - margin, max(late) + margin)
        if len(names) > 1:
            axes.legend(fontsize=8, frameon=False)
    # The last panel shows the scales; its legend stands beside it, for all such panels.
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def scale_bars(report: Mapping[str, Any], path: Path) -> None:
    """For each scale: codes used and perplexity; with a generator also bits per token beside two bounds."""
    tokenizer, generator = report["tokenizer"], report.get("generator")
    names = [scale["map"] for scale in tokenizer["scales"]]
    figure = _figure(10 if generator else 5.2, 3.6)
    axes_list = figure.subplots(1, 2 if generator else 1, squeeze=False)[0]
    series = {"used at least once": ("used", BLUE), "perplexity": ("perplexity", ORANGE)}
    _bars(axes_list[0], names, {label: [s[key] for s in tokenizer["scales"]] for label, (key, _) in series.items()})
    axes_list[0].axhline(tokenizer["vocab_size"], color=GREY, linestyle="--", label="vocabulary")
    _finish(axes_list[0], "Codes used by the test images", "token map")
    if generator:
        bits = {"generator": generator["scales"], "code frequencies alone": generator["frequencies_alone"]}
        _bars(axes_list[1], names, bits)
        axes_list[1].axhline(generator["log2_vocab"], color=GREY, linestyle="--", label="log2 of the vocabulary")
        _finish(axes_list[1], "Bits per token of the test images", "token map")
    for axes in axes_list:
        axes.set_ylim(0, axes.get_ylim()[1] * 1.25)
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="upper center")
    _save(figure, path)


def confusion_matrix(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> None:
    """Share of each asked class (rows) that the judge takes for each class (columns), in percent."""
    counts_CC = np.asarray(counts, dtype=float)
    percent_CC = 100 * counts_CC / counts_CC.sum(1, keepdims=True).clip(min=1)
    C = len(names)
    figure = _figure(2.2 + 0.55 * C, 1.6 + 0.5 * C)
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
    _save(figure, path)


def guidance_curves(trials: Sequence[Mapping[str, Any]], band: tuple[float, float], path: Path) -> None:
    """Class accuracy and spread ratio over the guidance strength, a line for each first map's temperature."""
    firsts = sorted({trial["temperature"][0] for trial in trials})
    figure = _figure(9.5, 3.6)
    accuracy_axes, ratio_axes = figure.subplots(1, 2)
    for first, shade in zip(firsts, _shades(len(firsts)), strict=True):
        line = [trial for trial in trials if trial["temperature"][0] == first]
        strengths = [trial["guidance"] for trial in line]
        style = {"color": shade, "marker": "o", "label": f"temperature {first:g} to {line[0]['temperature'][-1]:g}"}
        accuracy_axes.plot(strengths, [100 * trial["accuracy"] for trial in line], **style)
        ratio_axes.plot(strengths, [trial["spread_ratio"] for trial in line], **style)
    ratio_axes.axhspan(*band, color=GREY, alpha=0.2, linewidth=0)
    _finish(accuracy_axes, "Samples judged to be of the asked class, %", "guidance")
    _finish(ratio_axes, "Distance inside a class, samples / training images", "guidance")
    accuracy_axes.legend(fontsize=8, frameon=False)
    _save(figure, path)


def _bars(axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """Grouped bars with their values above."""
    width = 0.8 / len(series)
    for i, ((label, values), colour) in enumerate(zip(series.items(), (BLUE, ORANGE), strict=True)):
        places = [x + (i - (len(series) - 1) / 2) * width for x in range(len(names))]
        bars = axes.bar(places, values, width, color=colour, label=label)
        axes.bar_label(bars, [f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in values], fontsize=7)
    axes.set_xticks(range(len(names)), names)


def _shades(n: int) -> list[Any]:
    """Colours of an ordered series, light to dark, as the scales are coarse to fine."""
    return [colormaps["viridis_r"](0.1 + 0.9 * i / max(n - 1, 1)) for i in range(n)]


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _finish(axes: Axes, title: str, xlabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(xlabel)
    axes.grid(axis="y", color=GREY, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    atomic_write(path, figure.savefig)
