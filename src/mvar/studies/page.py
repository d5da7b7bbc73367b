"""Reports of studies as JSON, and their numbers as text."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvar.files import write_text


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a report, its floats `rounded`."""
    write_text(path, json.dumps(rounded(value), indent=2, ensure_ascii=False) + "\n")


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
