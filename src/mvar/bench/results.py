"""What all benchmarks do with their reports: lines of text, a JSON file and a chart."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvar import __version__
from mvar.charts import BLUE, can_plot, new_figure, save
from mvar.files import write_text
from mvar.machine import machine

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def columns(*rows: Sequence[str]) -> str:
    """Rows of a table as lines of text, the first column to the left, the others to the right."""
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [[row[0].ljust(first), *map(str.rjust, row[1:], widths)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def publish(
    report: Mapping[str, Any],
    stem: str,
    folder: Path | None,
    table: Callable[[Mapping[str, Any]], str],
    plot: "Callable[[Mapping[str, Any]], Figure]",
    as_json: bool = False,
) -> None:
    """Print a report as a table or JSON; into a folder, write STEM.json, and STEM.png where matplotlib is installed.

    What was written is said on standard error.
    """
    report = {**report, "machine": {"mvar": __version__, **machine()}}
    text = json.dumps(report, indent=2) + "\n"
    if folder is not None:
        write_text(folder / f"{stem}.json", text)
        names = [f"{stem}.json"]
        if can_plot(f"{stem}.png"):
            save(plot(report), folder / f"{stem}.png")
            names.append(f"{stem}.png")
        print(f"wrote {' and '.join(names)} into {folder}", file=sys.stderr)
    print(text if as_json else table(report))


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
