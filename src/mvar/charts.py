"""How figures look: colours, sizes, and one PNG written whole; drawn without a display."""

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mvar.files import atomic_write

BLUE, ORANGE, GREY = "#2a6fbb", "#d9822b", "#8a8f98"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches."""
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def finish(axes: Axes, title: str, xlabel: str) -> None:
    """Title, label and grid of one panel."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(xlabel)
    axes.grid(axis="y", color=GREY, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def shades(n: int) -> list[Any]:
    """Colours of an ordered series, light to dark, as the scales are coarse to fine."""
    return [colormaps["viridis_r"](0.1 + 0.9 * i / max(n - 1, 1)) for i in range(n)]


def save(figure: Figure, path: Path) -> None:
    """Write a PNG."""
    atomic_write(path, figure.savefig)
