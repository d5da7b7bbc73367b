"""The curves of a run: its metrics over its steps, as one PNG."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvar.charts import BLUE, ORANGE, new_figure, save, shades, style_axes

COLUMNS = 4
FEW = 20  # so few points are marked: a single one has no line
SHARED = {"score_real": "score", "score_fake": "score"}
Records = Sequence[Mapping[str, Any]]


def plot_curves(
    records: Records, path: Path, panels: Mapping[str, Sequence[str]] | None = None, scales: Sequence[str] = ()
) -> None:
    """Metrics over the steps of a run, a panel for each title; nothing where none of them was logged.

    Args:
        records: the lines of metrics.jsonl; a metric is a number, or a list with one for each scale.
        path: of the PNG.
        panels: title -> names of the (at most two) metrics in it, left out where none was logged; None shows all,
            training beside validation.
        scales: names of the scales; by default their numbers.
    """
    logged = {name for record in records for name in record}
    panels = {title: names for title, names in (panels or all_panels(records)).items() if logged & set(names)}
    if not panels:
        return
    columns = min(len(panels), COLUMNS)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(4.2 * columns, 3.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for i, (axes, (title, names)) in enumerate(zip(grid, panels.items(), strict=False)):
        late: list[float] = []
        for name, colour in zip(names, (BLUE, ORANGE), strict=False):
            known = [record for record in records if name in record]
            steps, values = [record["step"] for record in known], [record[name] for record in known]
            marker = "." if len(known) <= FEW else ""
            if known and isinstance(values[0], list):
                labels = scales or [f"scale {k}" for k in range(len(values[0]))]
                for label, line, shade in zip(labels, zip(*values, strict=True), shades(len(labels)), strict=True):
                    axes.plot(steps, line, color=shade, label=label, marker=marker)
                    late += line
            else:
                axes.plot(steps, values, color=colour, label=name, marker=marker)
                late += values[len(values) // 50 :]  # the first steps would flatten the rest
        lowest = i >= len(panels) - columns  # of its column, and the one that shows the steps
        style_axes(axes, title, "step" if lowest else "")
        axes.tick_params(labelbottom=lowest)
        finite = [value for value in late if math.isfinite(value)]
        if finite:
            margin = 0.05 * (max(finite) - min(finite)) or 0.1
            axes.set_ylim(min(finite) - margin, max(finite) + margin)
        if len(names) > 1:
            axes.legend(fontsize=8, frameon=False)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if any(isinstance(value, list) for record in records[-1:] for value in record.values()):
        # One legend of the scales beside the last panel, for all that show them.
        grid[len(panels) - 1].legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)


def all_panels(records: Records) -> dict[str, list[str]]:
    """A panel for each metric, the loss first, those of each scale last; a validation's stands beside its training's,
    and the discriminator's two scores share one.
    """
    names = list(dict.fromkeys(name for record in records for name in record if name != "step"))
    lists = {name for record in records for name, value in record.items() if isinstance(value, list)}
    panels: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (name in lists, not name.endswith("loss"))):
        panels.setdefault(SHARED.get(name, name).removeprefix("val_"), []).append(name)
    return panels
