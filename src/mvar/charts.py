"""How figures look: colours, sizes, and one PNG written atomically; drawn without a display.

matplotlib comes with the extra `plots` and is imported only when a figure is drawn.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvar.files import atomic_write
from mvar.machine import has_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2a6fbb", "#d9822b", "#8a8f98"


def can_plot(file: str) -> bool:
    """Whether matplotlib is installed; if not, warns that this figure is left out."""
    return has_extra("matplotlib", "plots", file)


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of this size in inches; raises ValueError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ValueError("figures need matplotlib; pip install 'mvar-torch[plots]'") from error
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def style_axes(axes: "Axes", title: str, xlabel: str) -> None:
    """Title, label and grid of one panel."""
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(xlabel)
    axes.grid(axis="y", color=GREY, alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def shades(n: int) -> list[Any]:
    """Colours of an ordered series, light to dark, as the scales are coarse to fine."""
    from matplotlib import colormaps

    return [colormaps["viridis_r"](0.1 + 0.9 * i / max(n - 1, 1)) for i in range(n)]


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG."""
    atomic_write(path, figure.savefig)
