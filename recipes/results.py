"""docs/results.md: what `mvar evaluate` measured of the packaged models, one table each; see `make results`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mvar.charts import BLUE, GREY, ORANGE, new_figure, save, style_axes
from mvar.checkpoint.bundle import TOKENIZER
from mvar.evaluation.report import Report, Value, check_comparable, number, read
from mvar.studies.page import fill, numbers, table
from recipes.shared import run_cli

MODELS = ("fashion-mnist", "icons")
SAMPLES, RECONSTRUCTIONS = "samples", "reconstructions"
SETTINGS = ("guidance", "guidance_schedule", "temperature", "top_k", "top_p", "seed", "dtype")


def write_page(
    folder: str = "docs/images/results", page_file: str = "docs/results.md", models: Sequence[str] = MODELS
) -> None:
    """Put the tables between the page's markers, and draw results.png beside the reports.

    Args:
        folder: of the reports, which are in <model>/samples and <model>/reconstructions.
        page_file: Markdown file with the two markers.
        models: to show, in this order.

    Raises:
        ValueError: a report is missing, or the two of a model have different protocols or tokenizers.
    """
    reports = read_reports(folder, models)
    fill(page_file, text(reports))
    _chart(reports, Path(folder, "results.png"))
    print(f"wrote {page_file}")


def read_reports(folder: str | Path, models: Sequence[str] = MODELS) -> dict[str, dict[str, Report]]:
    """The two reports of each model; arguments and errors are those of `write_page`."""
    reports = {
        model: {kind: read(Path(folder, model, kind)) for kind in (SAMPLES, RECONSTRUCTIONS)} for model in models
    }
    for model, pair in reports.items():
        check_comparable(pair)
        drew, restored = (
            pair[kind].samples.get("drawn_with", {}).get("sha256", {}) for kind in (SAMPLES, RECONSTRUCTIONS)
        )
        if drew.get(TOKENIZER) != restored.get(TOKENIZER):
            raise ValueError(f"{model}: samples and reconstructions are from different tokenizers; measure both again")
    return reports


def text(reports: Mapping[str, Mapping[str, Report]]) -> str:
    """All tables as Markdown."""
    return "\n\n".join(_section(model, pair[SAMPLES], pair[RECONSTRUCTIONS]) for model, pair in reports.items())


def _section(model: str, samples: Report, restored: Report) -> str:
    names = [name for name in samples.metrics if name in restored.metrics]
    rows = [
        ["other real images", *(_plain(samples.metrics[name].floor) for name in names)],
        ["reconstructions", *(_interval(restored.metrics[name]) for name in names)],
        ["samples", *(_interval(samples.metrics[name]) for name in names)],
    ]
    settings = samples.samples.get("drawn_with", {})
    drawn = ", ".join(f"{name} {_setting(settings[name])}" for name in SETTINGS if name in settings)
    fidelity = ", ".join(f"{name} {_interval(value)}" for name, value in restored.metrics.items() if name not in names)
    protocol = samples.protocol
    lines = [
        f"## {model}",
        table(["", *names], rows),
        f"{samples.samples['images']:,} samples and {restored.samples['images']:,} reconstructions against "
        f"{protocol['reference_images']:,} held-out images; {samples.floor['images']:,} of {samples.floor['name']!r} "
        f"for the first row. 90 % intervals in brackets. Samples: {drawn}. Reconstructions: {fidelity}.",
        f"Protocol: {protocol['network']} (weights {protocol['weights_sha256'][:12]}), {protocol['resize']}, "
        f"{protocol['dtype']}, reference {protocol['reference_sha256'][:12]}.",
        *(f"Note: {note}." for note in dict.fromkeys([*samples.notes, *restored.notes])),
    ]
    return "\n\n".join(lines)


def _setting(value: object) -> str:
    return numbers(value) if isinstance(value, (int, float, list)) else str(value)


def _plain(value: float | None) -> str:
    return "" if value is None else number(value)


def _interval(value: Value) -> str:
    interval = "" if value.low is None or value.high is None else f" ({number(value.low)} to {number(value.high)})"
    return number(value.value) + interval


def _chart(reports: Mapping[str, Mapping[str, Report]], path: Path) -> None:
    """The Frechet distance of each model's samples and reconstructions beside that of other real images."""
    figure = new_figure(9.5, 3.4)
    for axes, (model, pair) in zip(figure.subplots(1, len(reports), squeeze=False)[0], reports.items(), strict=True):
        (name, value), restored = next(iter(pair[SAMPLES].metrics.items())), pair[RECONSTRUCTIONS]
        bars = {
            "other real": value.floor or 0.0,
            "reconstructions": restored.metrics[name].value,
            "samples": value.value,
        }
        axes.bar(list(bars), list(bars.values()), 0.6, color=[GREY, ORANGE, BLUE])
        for x, shown in ((1, restored.metrics[name]), (2, value)):
            if shown.low is not None and shown.high is not None:
                axes.plot([x, x], [shown.low, shown.high], color="black", linewidth=1.5)
        style_axes(axes, f"{model}: {name}", f"N = {pair[SAMPLES].samples['images']:,}")
    save(figure, path)


if __name__ == "__main__":
    run_cli("python -m recipes.results", write_page)
