"""The results of a report as JSON and as Markdown, and the place for them in a documentation page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mvar.files import write_text
from mvar.sampling.config import PER_SCALE
from mvar.studies.distance import NAME


def markers(name: str) -> tuple[str, str]:
    """The two lines of a page between which results are put."""
    return f"<!-- {name}: begin (generated, do not edit) -->", f"<!-- {name}: end -->"


BEGIN, END = markers("results")


def fill(path: str | Path, text: str, name: str = "results") -> None:
    """Replace what is between the two markers of a file.

    Args:
        path: a page with both.
        text: Markdown.
        name: of the markers.

    Raises:
        ValueError: the file cannot be read or does not have each marker once, in order.
    """
    begin, end = markers(name)
    path = Path(path)
    try:
        page = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"out = {str(path)!r}: cannot be read ({error.strerror}); give the page") from error
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"out = {str(path)!r}: needs the lines {begin!r} and {end!r}, once each, in this order")
    before, after = page.split(begin)[0], page.split(end)[1]
    write_text(path, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")


def results(report: Mapping[str, Any]) -> str:
    """Tables of what was measured; a report of a tokenizer alone gives its part."""
    parts = [_headline(report), _scales(report)]
    if "samples" in report:
        parts.append(_classes(report["samples"]))
    machine = report["machine"]
    parts.append(
        f"Measured in {report['minutes']:.1f} minutes on {machine['cores']} cores ({machine['processor']}, "
        f"{machine['threads']} threads, torch {machine['torch']})."
    )
    return "\n\n".join(parts)


def _headline(report: Mapping[str, Any]) -> str:
    tokenizer, rows = report["tokenizer"], []
    for name, size in report["model"]["parameters"].items():
        rows.append([f"Parameters of the {name}", f"{size / 1e6:.2f} M"])
    for name, run in report["training"].items():
        text = f"{run['steps']:,} steps of {run['batch_size']}, {run['minutes']:.0f} min"
        rows.append([f"Training of the {name}, last stage", text])
    rows.append(["Test images", f"{tokenizer['images']:,}"])
    rows.append(["PSNR of reconstructions", f"**{tokenizer['psnr']:.2f} dB**"])
    if fine := tokenizer["from_3x3"]:
        share = 100 * fine["used"] / tokenizer["vocab_size"]
        text = f"**{fine['used']} of {tokenizer['vocab_size']}** ({share:.1f} %), perplexity {fine['perplexity']:.0f}"
        rows.append(["Codes used by the maps from 3x3 up", text])
    if generator := report.get("generator"):
        text = f"**{generator['bits_per_token']:.3f}** of {generator['log2_vocab']:.2f}"
        rows.append(["Bits per token, given the class", f"{text} ({generator['bits_per_image']:.0f} an image)"])
        rows.append(["Bits per token by code frequencies alone", f"{generator['frequencies_alone_per_token']:.3f}"])
    if samples := report.get("samples"):
        real, restored, settings = samples["real"], samples["reconstructed"], samples["settings"]
        setting = ", ".join(f"{name.replace('_', '-')} {numbers(settings[name])}" for name in PER_SCALE)
        rows.append(["Samples", f"{samples['images']:,}, {setting}"])
        rows.append(["Samples judged to be of the asked class", f"**{_percent(samples['accuracy'])}**"])
        rows.append(["The judge on the real test images", _percent(real["accuracy"])])
        rows.append(["The judge on their reconstructions", _percent(restored["accuracy"])])
        rows.append(["Pixel distance inside a class, samples / real", f"**{samples['spread_ratio']:.3f}**"])
        rows.append(["Pixel distance inside a class, reconstructions / real", f"{restored['spread_ratio']:.3f}"])
        text = f"{samples['seconds_per_image']:.4f} in batches of {samples['batch_size']}"
        rows.append(["Seconds per image", text])
    if distance := report.get("distance"):
        shown = {"real": "real training images", "reconstructed": "reconstructions", "samples": "samples"}
        for key, name in shown.items():
            if found := distance.get(key):
                text = f"{NAME} of {found['images']:,} {name} against the {distance['reference']:,} test images"
                rows.append([text, f"**{found['value']:.1f}**"])
    return table(["", ""], rows)


def _scales(report: Mapping[str, Any]) -> str:
    tokenizer, generator = report["tokenizer"], report.get("generator")
    head = ["Token map", "Codes used", "Perplexity"]
    rows = [[scale["map"], str(scale["used"]), f"{scale['perplexity']:.1f}"] for scale in tokenizer["scales"]]
    if generator:
        head += ["Bits per token", "Bits by frequencies alone"]
        for row, bits, alone in zip(rows, generator["scales"], generator["frequencies_alone"], strict=True):
            row += [f"{bits:.3f}", f"{alone:.3f}"]
    return table(head, rows)


def _classes(samples: Mapping[str, Any]) -> str:
    head = ["Class", "Samples judged right", "Real images judged right", "Distance, samples / real"]
    columns = [samples["class_accuracy"], samples["real"]["class_accuracy"], samples["class_spread_ratio"]]
    rows = [
        [name, _percent(right), _percent(real), f"{ratio:.3f}"]
        for name, right, real, ratio in zip(samples["classes"], *columns, strict=True)
    ]
    return table(head, rows)


def numbers(value: float | Sequence[float]) -> str:
    """A number, or one for each scale."""
    return " ".join(f"{number:g}" for number in (value if isinstance(value, Sequence) else [value]))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and the others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a report, its floats rounded to what means something."""
    write_text(path, json.dumps(rounded(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, field: str) -> dict[str, Any]:
    """Read values by name; raises ValueError, which begins with the field, where that cannot be done."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{field} = {str(path)!r}: cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{field} = {str(path)!r}: holds a {type(value).__name__}, expected values by name")
    return value


def rounded(value: Any) -> Any:
    """A value as reports have it: numbers to five places, so that people can read the file."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return round(value, 5) if isinstance(value, float) else value
