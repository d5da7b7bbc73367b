"""The figure of a guidance and filter sweep."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvar.charts import BLUE, GREY, ORANGE, new_figure, save, shades, style_axes
from mvar.sampling.config import UNFILTERED
from mvar.studies.distance import NAME

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Trial = Mapping[str, Any]
KINDS = {"no filter": (BLUE, "o"), "top-k": (ORANGE, "s"), "top-p": (ORANGE, "^")}  # colour and marker


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto front, by the first value: points that no other matches in both values and beats in one."""

    def is_beaten(p: tuple[float, float]) -> bool:
        return any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)

    return sorted((i for i, p in enumerate(points) if not is_beaten(p)), key=lambda i: points[i])


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Draw the contents of sweep.json: trade-offs between settings, the Pareto fronts and the chosen setting."""
    figure = new_figure(11, 8)
    (trade, shares), (strengths, filters) = figure.subplots(2, 2)
    real = report["real"]
    _scatter(trade, report, ("accuracy", 100), ("distance", -1))
    trade.axvline(100 * report["settings"]["least_accuracy"], color=GREY, linestyle="--", label="least accuracy")
    hollow = "hollow: spread out of the band" if report["settings"]["spread_band"] else None
    handles, labels = trade.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=6, fontsize=8, frameon=False, title=hollow)
    style_axes(trade, f"{NAME}; {report['images']:,} real images: {real['distance']:.1f}", "judged right, %")

    _scatter(shares, report, ("recall", 1), ("precision", 1))
    style_axes(shares, f"Precision; real images: {real['precision']:.2f}, recall {real['recall']:.2f}", "recall")

    plain = [trial for trial in report["trials"] if not _is_filtered(trial)]
    lines: dict[tuple[float, int], list[Trial]] = {}
    for trial in plain:
        lines.setdefault((trial["temperature"][0], _unguided(trial)), []).append(trial)
    for ((first, without), line), shade in zip(sorted(lines.items()), shades(len(lines)), strict=True):
        line.sort(key=_strength)
        label = f"temperature {first:g} to {line[0]['temperature'][-1]:g}"
        label += f", without guidance at the {without} finest maps" if without else ""
        values = [trial["distance"] for trial in line]
        strengths.plot([_strength(trial) for trial in line], values, color=shade, marker="o", label=label)
    strengths.legend(fontsize=8, frameon=False)
    style_axes(strengths, f"{NAME} without filters", "guidance")

    _changes(filters, report)
    save(figure, path)


def _strength(trial: Trial) -> float:
    """The strongest guidance of a trial."""
    weights = trial["guidance"]
    return max(weights) if isinstance(weights, list) else weights


def _unguided(trial: Trial) -> int:
    """The number of finest maps without guidance, where other maps have it."""
    weights = trial["guidance"]
    return len(list(takewhile(lambda weight: not weight, reversed(weights)))) if isinstance(weights, list) else 0


def _scatter(axes: "Axes", report: Mapping[str, Any], across: tuple[str, int], up: tuple[str, int]) -> None:
    """Every trial as a point, hollow where its spread lies outside the band, and the front as a line.

    `across` and `up` are a measure and its factor, which is negative where less is better.
    """
    trials = report["trials"]
    points = [tuple(trial[name] * factor for name, factor in (across, up)) for trial in trials]
    x, y = ([abs(value) for value in values] for values in zip(*points, strict=True))
    best = front(points)
    low, high = report["settings"]["spread_band"] or (0, float("inf"))
    axes.plot([x[i] for i in best], [y[i] for i in best], color=GREY, label="Pareto front")
    for kind, (colour, marker) in KINDS.items():
        if own := [i for i, trial in enumerate(trials) if _kind(trial) == kind]:
            fills = [colour if low <= trials[i]["spread_ratio"] <= high else "white" for i in own]
            places = [x[i] for i in own], [y[i] for i in own]
            axes.scatter(*places, c=fills, edgecolors=colour, marker=marker, label=kind, zorder=3)
    place = trials.index(report["chosen"])
    axes.plot(x[place], y[place], "o", color="black", fillstyle="none", markersize=13, label="chosen")


def _changes(axes: "Axes", report: Mapping[str, Any]) -> None:
    """How filters change each measure, in percent of its value without filters."""
    changed = [trial for trial in report["trials"] if _is_filtered(trial)]
    if changed:
        same = ("guidance", "temperature")
        plain = next(
            t for t in report["trials"] if not _is_filtered(t) and all(t[name] == changed[0][name] for name in same)
        )
        names = ["no filter", *(f"{_kind(t)} {t[_kind(t).replace('-', '_')]:g}" for t in changed)]
        measures = {"distance": NAME, "accuracy": "judged right", "precision": "precision", "recall": "recall"}
        for (key, label), marker in zip(measures.items(), "osv^", strict=True):
            values = [100 * (trial[key] / max(plain[key], 1e-9) - 1) for trial in [plain, *changed]]
            axes.plot(names, values, marker=marker, label=label)
        axes.tick_params(axis="x", rotation=30)
        axes.legend(fontsize=8, frameon=False)
    style_axes(axes, "What filters change, %", "")


def _is_filtered(trial: Trial) -> bool:
    return _kind(trial) != "no filter"


def _kind(trial: Trial) -> str:
    return next((name.replace("_", "-") for name, off in UNFILTERED.items() if trial[name] != off), "no filter")
