"""What all benchmarks do with their results: lines of text, a JSON file and a chart."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvar import __version__
from mvar.charts import BLUE, can_draw, new_figure, save
from mvar.files import write_text
from mvar.machine import machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def columns(*rows: Sequence[str]) -> str:
    """Rows of a table as lines of text, the first column to the left, the others to the right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [[row[0].ljust(first), *map(str.rjust, row[1:], widths)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def measured_on() -> dict[str, Any]:
    """Version and machine."""
    return {"mvar": __version__, **machine()}


def as_json(report: Mapping[str, Any]) -> str:
    """A report as the text of its file."""
    return json.dumps(report, indent=2) + "\n"


def write_results(report: Mapping[str, Any], folder: Path, stem: str, draw: "Callable[[], Figure]") -> None:
    """Write STEM.json, and STEM.png where matplotlib is installed."""
    write_text(folder / f"{stem}.json", as_json(report))
    if can_draw(f"{stem}.png"):
        save(draw(), folder / f"{stem}.png")


def bar_chart(names: Sequence[str], panels: Mapping[str, Sequence[float]]) -> "Figure":
    """A bar for each name in each panel, with its value."""
    figure = new_figure(4 * len(panels), 1.2 + 0.45 * len(names))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, values) in zip(grid, panels.items(), strict=True):
        bars = axes.barh(names[::-1], values[::-1], color=BLUE)
        axes.bar_label(bars, fmt="{:,.3g}" if max(values) < 1000 else "{:,.0f}", padding=3)
        axes.set_title(title)
        axes.margins(x=0.15)
    return figure
