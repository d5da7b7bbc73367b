"""The page of studies: what the paper found, what was measured here, a figure and a verdict for each."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mvar.charts import can_plot
from mvar.files import write_text
from mvar.studies.comparing import figures, records, timing
from mvar.studies.comparing.plan import Missing, Scale, Study
from mvar.studies.comparing.records import MINUTES, Row, Spread
from mvar.studies.comparing.timing import Times
from mvar.studies.distance import NAME as DISTANCE
from mvar.studies.page import fill, markers, table
from mvar.text import counted

NAME = "studies"  # of the page's markers


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
    if not reports.is_dir():
        raise ValueError(f"reports = {str(reports)!r}: is no folder; give the one that mvar study run wrote into")
    sections = []
    for module in modules:
        if hasattr(module, "STUDY"):
            found = results(module.STUDY, scale, reports / scale.name, seeds, page.parent)
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
    parts, rows = [], []
    for data in study.data_of(scale):
        try:
            own = records.table(study, scale, data, reports, seeds)
        except Missing as missing:
            parts.append(
                f"**{data.name}**: not complete at scale {scale.name}; the first missing result is {missing.file}."
            )
            continue
        rows += own
        real, restored = (
            f"{DISTANCE} {found['distance']:.1f}, class accuracy {found['accuracy']:.3f}"
            for found in (own[0].floor, own[0].restored)
        )
        parts += [
            f"**{data.name}**, {counted(own[0].seeds, 'seed')}, {data.per_class} samples of each class; "
            f"{counted(own[0].floor['images'], 'held-out image')}: {real}; these reconstructed by the tokenizer, which "
            f"bounds what samples can reach: {restored}",
            _table(own, study, scale, reports),
        ]
    if not rows:
        return "\n\n".join(parts)
    models = study.variants(scale.model, scale)
    times = {name: timing.read(model, scale, reports) for name, model in models.items()} if not scale.spread else {}
    figure = reports / f"{study.name}.png"
    if page is not None and can_plot(str(figure)):
        (study.plot or figures.plot)(rows, times, figure)
        parts.append(f"![{study.title}: loss and distance of each variant]({os.path.relpath(figure, page)})")
    found = study.conclude(rows, times) if study.conclude else records.verdict(rows, study.baseline)
    return "\n\n".join([*parts, *(f"**Verdict.** {sentence}" for sentence in found)])


def _table(rows: Sequence[Row], study: Study, scale: Scale, reports: Path) -> str:
    costs, quality = (
        ["parameters", "training time", "image time", "steps", "rate"],
        ["class accuracy", "precision", "recall"],
    )
    head = ["", *costs, "bits per token", DISTANCE, *quality]
    models = study.variants(scale.model, scale)
    lines = []
    for row in rows:
        if row.at == MINUTES and any(
            row[:2] == other[:2] and row.steps == other.steps for other in rows if other.at != MINUTES
        ):
            continue  # the same row again
        times = timing.read(models[row.variant], scale, reports) if not scale.spread else None
        lines.append(
            [
                row.variant if row.at != MINUTES else f"{row.variant}, {MINUTES}",
                *(
                    [f"{times.parameters / 1e6:.2f} M", f"{times.step:.2f}", f"{times.image:.2f}"]
                    if times
                    else [""] * 3
                ),
                f"{row.steps:,}",
                f"{row.rate:.2g}",
                _spread(row.measures["bits_per_token"], 3),
                _spread(row.measures["distance"], 1),
                *(_spread(row.measures[name], 3) for name in ("accuracy", "precision", "recall")),
            ]
        )
    return table(head, lines)


def _costs(times: Times | None) -> list[str]:
    if times is None:
        return [""] * 3
    return [f"{times.parameters / 1e6:.2f} M", f"{times.step:.2f}", f"{times.image:.2f}"]


def _spread(value: Spread, digits: int) -> str:
    return f"{value.mean:.{digits}f} ± {value.deviation:.{digits}f}" if value.deviation else f"{value.mean:.{digits}f}"
