"""What reproduces a sample outside the page: a command, Python, and a call of the HTTP interface."""

import json
import shlex
from typing import Any

from mvar.sampling.labels import file_name, label_ids, parse_labels
from mvar.web.api.schemas import NAMES
from mvar.web.messages import Card
from mvar.web.page.asking import Asked
from mvar.web.page.settings import class_name
from mvar.web.service import Source


def command(source: Source, card: Card, asked: Asked, n: int) -> str:
    """`mvar sample` that writes these n images."""
    words = ["mvar", "sample", "--model", source.path, f"--labels={label_text(card, asked.label)}"]
    words += ["--per-class", str(n), "--seed", str(asked.seed)]
    for name, value in asked.settings.items():
        words += [f"--{name.replace('_', '-')}", _text(value)]
    for name in ("device", "dtype"):
        words += [f"--{name}", getattr(source, name)] if getattr(source, name) else []
    return shlex.join([*words, "--out-dir", "samples"])


def python(source: Source, card: Card, asked: Asked, n: int) -> str:
    """The same in Python."""
    label = None if asked.label is None else label_text(card, asked.label)
    given = {name: getattr(source, name) for name in ("device", "dtype") if getattr(source, name)}
    loading = "".join(f", {name}={value!r}" for name, value in given.items())
    settings = "".join(f", {name}={value!r}" for name, value in asked.settings.items())
    return (
        "import mvar\n\n"
        f"model = mvar.load({json.dumps(source.path)}{loading})\n"
        f"out = model.sample([{_quoted(label)}] * {n}, seed={asked.seed}{settings})\n"
        'for i, image in enumerate(out.images):\n    image.save(f"sample-{i}.png")'
    )


def curl(address: str, card: Card, asked: Asked, n: int, with_key: bool) -> str:
    """The same from this server; the images are in its answer, in base64."""
    body: dict[str, Any] = {"model": asked.model, "prompt": label_text(card, asked.label), "n": n, "seed": asked.seed}
    body |= {NAMES.get(name, name): value for name, value in asked.settings.items()}
    key = ' -H "Authorization: Bearer $MVAR_API_KEY"' if with_key else ""
    return (
        f"curl {address}v1/images/generations{key} \\\n"
        f"  -H 'Content-Type: application/json' \\\n  -d {shlex.quote(json.dumps(body))}"
    )


def saved(card: Card, asked: Asked, index: int, **more: Any) -> tuple[str, dict[str, Any]]:
    """The name of an image's file, and what is written into it: what decided the image, and `more`."""
    facts = {
        "model": asked.model,
        "class": class_name(card, asked.label),
        "label": asked.label,
        "seed": asked.seed,
        "index": index,
        **card.defaults,
        **asked.settings,
        **more,
    }
    return f"{file_name(facts['class'])}-{asked.seed}-{index}.png", facts


def label_text(card: Card, label: int | None) -> str:
    """How a class is given: by its name where that says which one it is, else by its index; -1 for none."""
    if label is None:
        return "-1"
    try:
        found = label_ids(parse_labels(card.classes[label], card.classes), card.classes, len(card.classes))
    except ValueError:
        found = []
    return card.classes[label] if found == [label] else str(label)


def _quoted(label: str | None) -> str:
    return "None" if label is None else label if label.isdigit() else json.dumps(label, ensure_ascii=False)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
