"""The page of studies: what the paper found, what was measured here, a figure and a verdict for each."""

import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from mvar.charts import can_plot
from mvar.files import write_text
from mvar.studies.comparing import figures, records, timing
from mvar.studies.comparing.plan import M_VAR, VAR, DataSet, Missing, Scale, Study
from mvar.studies.comparing.records import LOSS, MINUTES, Row
from mvar.studies.comparing.timing import Times
from mvar.studies.comparing.verdict import verdict
from mvar.studies.page import fill, markers, table, with_verdict
from mvar.text import counted

NAME = "studies"  # of the page's markers
MEASURES = {  # headings of columns, and decimals
    LOSS: ("bits per token", 3),
    "distance": ("", 1),  # named by its features
    "accuracy": ("class accuracy", 3),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
}


def write_page(
    page: Path, reports: Path, modules: Sequence[ModuleType], scale: Scale, seeds: int | None = None
) -> None:
    """Fill in the page of studies, from the results of those that were run; draws their figures.

    Args:
        page: Markdown file; made where it does not exist.
        reports: folder with the results of attention and cost, and in a folder of the scale's name those of runs.
        modules: of the studies.

    Raises:
        ValueError: a record is damaged, or runs were measured by different protocols.
    """
    sections = []
    for module in modules:
        if hasattr(module, "STUDY"):
            shown = results(module.STUDY, scale, reports / scale.name, seeds, page.parent)
            found = f"To expect: {module.STUDY.expected}\n\n{shown}"
        else:
            found = module.results(reports, page.parent)
        name = module.__name__.rsplit(".", 1)[-1].replace("_", "-")
        paper = (inspect.getdoc(module) or "").split("\n\nShapes: ")[0]  # of the code
        sections.append(f"## {name}\n\n{paper}\n\n{found}")
    if not page.exists():
        begin, end = markers(NAME)
        write_text(page, f"# Studies\n\n{begin}\n{end}\n")
    fill(page, "\n\n".join(sections), NAME, "page")


def results(study: Study, scale: Scale, reports: Path, seeds: int | None = None, page: Path | None = None) -> str:
    """What a study found, as Markdown: tables, verdict, and with a page's folder the figure, which is drawn.

    Raises as `write_page`.
    """
    parts, rows = [scale.caution] if scale.caution else [], list[Row]()
    models = study.variants(scale.model, scale)
    for data in study.data_of(scale):
        try:
            own = records.table(study, scale, data, reports, seeds)
            times = {name: timing.read(model, scale, reports) for name, model in models.items()}
        except Missing as missing:
            parts.append(
                f"**{data.name}**: not complete at scale {scale.name}, {missing.file} is missing; run the study again."
            )
            continue
        rows += own
        parts += [_heading(own[0], data, scale), _table(own, times)]
    if not rows:
        return "\n\n".join(parts)
    figure = reports / f"{study.name}.png"
    if page is not None and can_plot(str(figure)):
        (study.plot or figures.plot)(rows, times, figure)
        parts.append(f"![{study.title}]({os.path.relpath(figure, page)})")
    if study.conclude:
        found = study.conclude(rows, times)
    else:
        found = list(dict.fromkeys(said for baseline in study.baselines for said in verdict(rows, baseline)))
    return with_verdict(parts, found)


def _heading(row: Row, data: DataSet, scale: Scale) -> str:
    """What the table of a data set rests on."""
    samples = f", {data.per_class} samples of each class" if row.floor else ""
    return f"**{data.name}**, scale {scale.name}, {counted(row.seeds, 'seed')}{samples}"


def _table(rows: Sequence[Row], times: Mapping[str, Times]) -> str:
    measures = [name for name in MEASURES if name in rows[0].measures]
    headings = [MEASURES[name][0] or rows[0].distance for name in measures]
    unit = VAR if VAR in times else M_VAR  # of the scale, to which times were measured
    costs = [f"{what} time ({unit} = 1)" for what in ("training", "image")]
    lines = [["", "parameters", *costs, "steps", "rate", *headings]]
    floor, restored = rows[0].floor, rows[0].restored
    if floor and restored:
        for name, real in {
            counted(floor["images"], "held-out image"): floor,
            "their reconstructions": restored,
        }.items():
            found = Row(name, "", "", 0, 0.0, 1, {key: records.spread([real[key]]) for key in measures[1:]})
            cells = _measures(found._replace(interval=tuple(real["distance_interval"])))
            lines.append([name, *[""] * 6, *cells])
    for row in rows:
        if row.at == MINUTES and any(
            row[:2] == other[:2] and row.steps == other.steps for other in rows if other.at != MINUTES
        ):
            continue  # the same row again
        lines.append(
            [
                row.variant if row.at != MINUTES else f"{row.variant}, {MINUTES}",
                *_costs(times[row.variant], times.get(VAR)),
                f"{row.steps:,}",
                f"{row.rate:.2g}",
                *_measures(row),
            ]
        )
    return table(lines[0], lines[1:])


def _costs(times: Times, unit: Times | None) -> list[str]:
    """A generator's size, and its times relative to another, or else to the scale's M-VAR."""
    ratios = [(times.step, unit and unit.step), (times.image, unit and unit.image)]
    relative = ["" if ratio is None else f"{ratio / (one or 1.0):.2f}" for ratio, one in ratios]
    return [f"{times.parameters / 1e6:.2f} M", *relative]


def _measures(row: Row) -> list[str]:
    """Each measure of a row, with its deviation between seeds and the distance's interval."""
    cells = []
    for name, (_, digits) in MEASURES.items():
        if name in row.measures:
            value = row.measures[name]
            cell = f"{value.mean:.{digits}f}" + (f" ± {value.deviation:.{digits}f}" if row.seeds > 1 else "")
            cells.append(cell + (f" ({row.interval[0]:.0f} to {row.interval[1]:.0f})" if name == "distance" else ""))
    return cells
