"""The figures of studies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvar.charts import BLUE, ORANGE, new_figure, save, style_axes
from mvar.studies.comparing.records import LOSS, MINUTES, STEPS, Row

MARKS = {STEPS: (BLUE, "o"), MINUTES: (ORANGE, "s")}  # colour and marker


def plot(rows: Sequence[Row], times: Mapping[str, Any], path: Path) -> None:
    """Loss and distance of every variant, with the deviation between seeds: a column for each data set."""
    data_sets, variants = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("data", "variant"))
    figure = new_figure(5.5 * len(data_sets), 1.2 + 0.7 * len(variants))
    grid = figure.subplots(2, len(data_sets), squeeze=False, sharey=True)
    panels = {LOSS: "Validation loss, bits per token", "distance": rows[0].distance}
    for line, (measure, title) in zip(grid, panels.items(), strict=True):
        for axes, data in zip(line, data_sets, strict=True):
            for (at, (colour, marker)), shift in zip(MARKS.items(), (-0.12, 0.12), strict=True):
                own = [row for row in rows if (row.data, row.at) == (data, at)]
                spreads = [row.measures[measure] for row in own]
                places = [variants.index(row.variant) + shift for row in own]
                axes.errorbar(
                    [s.mean for s in spreads], places, xerr=[s.deviation for s in spreads], fmt=marker, color=colour,
                    label=at, capsize=3,
                )  # fmt: skip
            axes.set_yticks(range(len(variants)), variants)
            style_axes(axes, f"{title}, {data}", "")
            axes.grid(axis="x", alpha=0.25)
    grid[0][0].invert_yaxis()
    grid[0][0].legend(fontsize=8, frameon=False)
    save(figure, path)
