"""What an evaluation found, with its protocol; results of different protocols are never mixed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvar.evaluation.intervals import Value as Value
from mvar.files import write_text

NAME = "report.json"
MOST = 10  # items of a list that is printed in full
ARROWS = {"lower": "↓", "higher": "↑"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The report on one set of samples.

    Attributes:
        protocol: all that decides the values besides the samples; equal for results that may be compared.
        samples: name, number, fingerprint and, where known, what they were drawn with.
        floor: which real images the floor is of.
        metrics: by name.
        classes: for each class its name, its numbers of samples and real images, and its own measures.
        notes: what a reader must know to interpret the values.
        speed: seconds and peak_bytes of the evaluation, and, where the cache lacked their features, images_per_second
            of the samples, reading included.
        machine: versions and processor.
    """

    protocol: dict[str, Any]
    samples: dict[str, Any]
    floor: dict[str, Any]
    metrics: dict[str, Value]
    classes: list[dict[str, Any]]
    notes: list[str]
    speed: dict[str, float]
    machine: dict[str, Any]


def write(report: Report, folder: Path) -> Path:
    """Write report.json and return its path."""
    write_text(folder / NAME, json.dumps(asdict(report), indent=2) + "\n")
    return folder / NAME


def read(path: str | Path) -> Report:
    """Read a report, by its file or folder; raises ValueError where there is none."""
    file = Path(path)
    file = file / NAME if file.is_dir() else file
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        metrics = {name: Value(**value) for name, value in content.pop("metrics").items()}
        return Report(**content, metrics=metrics)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"report = {str(path)!r}: is no {NAME} of mvar evaluate ({error}); give its folder") from error


def table(report: Report) -> str:
    """The report as lines of text, protocol first."""
    facts = {"": report.protocol, "samples ": report.samples, "floor ": report.floor}
    lines = [f"{kind + name:>20}  {_text(value)}" for kind, held in facts.items() for name, value in held.items()]
    lines += ["", f"{'':>20}{'value':>12}{'90 % interval':>22}{'real, floor':>14}"]
    for name, v in report.metrics.items():
        interval, floor = _interval(v, " .. "), "" if v.floor is None else number(v.floor)
        lines.append(f"{name:>20}{number(v.value):>12}{interval:>22}{floor:>14}")
    lines += ["", *(f"note: {note}" for note in report.notes)] if report.notes else []
    if "seconds" in report.speed:
        rate = report.speed.get("images_per_second")
        features = "features from the cache" if rate is None else f"{rate:.4g} samples per second, reading included"
        lines += ["", f"{report.speed['seconds']:.3g} s, {report.speed['peak_bytes'] / 1e9:.3g} GB; {features}"]
    return "\n".join(lines)


def compare(reports: Mapping[str, Report]) -> str:
    """Several reports as one Markdown table, a row for each report and each floor; protocol and notes below it.

    Raises:
        ValueError: none, or their protocols differ; one line for each field that does.
    """
    check_comparable(reports)
    better = {name: value.better for report in reports.values() for name, value in report.metrics.items()}
    rows, floors = [], []
    for title, report in reports.items():
        rows.append(_row([title, *(_cell(report.metrics.get(name)) for name in better)]))
        if report.floor:
            values = [report.metrics[name].floor if name in report.metrics else None for name in better]
            real = f"{report.floor['images']:,} real images: {report.floor['name']}"
            floors.append(_row([real, *("" if value is None else number(value) for value in values)]))
    head = [
        _row(["", *(f"{name} {ARROWS[how]}" for name, how in better.items())]),
        _row(["---", *["---:"] * len(better)]),
    ]
    protocol = next(iter(reports.values())).protocol
    return "\n\n".join(
        [
            "\n".join([*head, *rows, *dict.fromkeys(floors)]),
            f"Protocol: {', '.join(f'{name} {_text(value)}' for name, value in protocol.items())}.",
            *(f"Note on {title}: {'; '.join(report.notes)}." for title, report in reports.items() if report.notes),
        ]
    )


def check_comparable(reports: Mapping[str, Report]) -> None:
    """Raises ValueError where protocols differ: a line for each field, with two of its values.

    References are compared by their fingerprints, not by their names.
    """
    if not reports:
        raise ValueError("reports: none were given; name at least one")
    (first, one), *others = ((title, report.protocol) for title, report in reports.items())
    differing = {
        f"{field} = {_text(one.get(field))} in {first}, {_text(other.get(field))} in {title}"
        for title, other in others
        for field in (one.keys() | other.keys()) - {"reference"}
        if one.get(field) != other.get(field)
    }
    if differing:
        raise ValueError("\n".join(f"{line}: different protocols, no table" for line in sorted(differing)))


def _interval(value: Value, between: str) -> str:
    return "" if value.low is None or value.high is None else f"{number(value.low)}{between}{number(value.high)}"


def _cell(value: Value | None) -> str:
    if value is None:
        return ""
    return number(value.value) + (f" ({interval})" if (interval := _interval(value, "–")) else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(x: float) -> str:
    """Three decimals for shares, else four significant digits."""
    return f"{x:.3f}" if 0.01 <= abs(x) < 1 else f"{x:.4g}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(item)}" for name, item in value.items())
    if isinstance(value, list) and len(value) > MOST:
        return f"{', '.join(map(_text, value[:3]))}, ... {_text(value[-1])} ({len(value)} in all)"
    return f"{value:g}" if isinstance(value, float) else str(value)
