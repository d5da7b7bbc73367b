"""Reports as JSON, their numbers as text, and the documentation pages that show them."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mvar.files import write_text


def write_json(path: Path, value: Mapping[str, Any], exact: Sequence[str] = ()) -> None:
    """Write a report, its floats `rounded`, but for the values of the names in `exact`."""
    kept = {name: value[name] for name in exact}
    write_text(path, json.dumps({**rounded(value), **kept}, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, field: str) -> dict[str, Any]:
    """Read a JSON object; raises ValueError, which begins with the field, where that fails."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{field} = {str(path)!r}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{field} = {str(path)!r}: holds a {type(value).__name__}, expected values by name")
    return value


def rounded(value: Any) -> Any:
    """A value with its floats rounded to five decimals, so that people can read the file."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value


def numbers(value: float | Sequence[float]) -> str:
    """One number, or one per scale."""
    return " ".join(f"{number:g}" for number in (value if isinstance(value, Sequence) else [value]))


# --- pages ---


def markers(name: str = "results") -> tuple[str, str]:
    """The two lines of a page between which results are put."""
    return f"<!-- {name}: begin (generated, do not edit) -->", f"<!-- {name}: end -->"


def fill(path: str | Path, text: str, name: str = "results", field: str = "out") -> None:
    """Replace the lines between the two markers of a Markdown file.

    Raises:
        ValueError: the file that `field` names cannot be read, or does not have each marker once, in order.
    """
    begin, end = markers(name)
    path = Path(path)
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{field} = {str(path)!r}: cannot be read ({error}); give the page") from error
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"{field} = {str(path)!r}: needs the lines {begin!r} and {end!r}, once each, in this order")
    before, after = page.split(begin)[0], page.split(end)[1]
    write_text(path, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and the others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_verdict(parts: Sequence[str], sentences: Sequence[str]) -> str:
    """Paragraphs of a study's section, and the verdict as the last one if there is any."""
    verdict = [f"**Verdict.** {' '.join(sentences)}"] if sentences else []
    return "\n\n".join([*parts, *verdict])


def shown(reports: Path, pattern: str, text: Callable[[Mapping[str, Any]], str], page: Path) -> str:
    """Reports of a folder as Markdown: the text of each, and the figure beside it, linked from the page's folder."""
    parts = []
    for path in sorted(reports.glob(pattern)):
        try:
            parts.append(f"```text\n{text(read_json(path, 'reports'))}\n```")
        except (KeyError, TypeError) as error:
            raise ValueError(f"reports = {str(path)!r}: is not a whole report; delete it and measure again") from error
        if (figure := path.with_suffix(".png")).exists():
            parts.append(f"![{path.stem.replace('_', ' ')}]({Path(os.path.relpath(figure, page)).as_posix()})")
    return "\n\n".join(parts) or "Not measured yet."
