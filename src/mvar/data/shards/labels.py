"""The labels of shards, and the classes that they name."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvar.data.images.folders import natural
from mvar.files import read_bounded
from mvar.text import Names, clean, counted, shown

CLASS_FILES = ("classes.txt", "classes.json")
MOST_LISTED = 2**24  # bytes of a list of classes
MOST_NAME = 200  # characters of a class name
WHOLE = re.compile(r"[+-]?[0-9]+")
NOT_WHOLE = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan", re.IGNORECASE)

Label = int | str | None


def parse_label(kind: str, content: bytes) -> Label:
    """The label in a .cls or .json ({"label": ...}), a whole number from 0 or a name; None where it has none.

    Text that is a whole number is one, in both kinds of files.

    Raises:
        ValueError: the reason why it is no label.
    """
    label: Any
    try:
        if kind == "cls":
            label = content.decode("utf-8")
        else:
            found = parse_json(content)
            label = found.get("label") if isinstance(found, dict) else None
        if isinstance(label, str) and WHOLE.fullmatch(clean(label)):
            label = int(clean(label))
    except ValueError as error:
        raise ValueError(f"its .{kind} cannot be read ({error})") from error
    if label is None:
        return None
    try:
        if isinstance(label, str):
            if NOT_WHOLE.fullmatch(name := class_name(label)):
                raise ValueError(f"is {name!r}, neither a whole number nor a name")
            return name
        if type(label) is not int:
            raise ValueError(f"is of the type {type(label).__name__}, neither a whole number nor a name")
        if label < 0:
            raise ValueError("is negative; classes are counted from 0")
    except ValueError as error:
        raise ValueError(f"its label {error}") from error
    return label


def parse_json(content: bytes) -> Any:
    """Parse JSON; raises ValueError where it is none, nested too deeply, or an object in it has two labels."""
    try:
        return json.loads(content, object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if [name for name, _ in pairs].count("label") > 1:
        raise ValueError("it has two labels")
    return dict(pairs)


def class_name(text: str) -> str:
    """A class name as it is compared and stored; see `mvar.text.clean`.

    Raises:
        ValueError: it is empty, too long, or no text.
    """
    name = clean(text)
    if not name:
        raise ValueError("is an empty name")
    if len(name) > MOST_NAME:
        raise ValueError(f"is a name of {len(name):,} characters, more than {MOST_NAME}")
    if any("\ud800" <= c <= "\udfff" for c in name):
        raise ValueError(f"is no text: {name!r}")
    return name


class Classes:
    """Classes as labels refer to them: by number, or by name as `mvar.text.Names.find` compares them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._total, self._names = len(names), Names(names)

    def find(self, label: Label) -> int | None:
        """The index of a label's class; None where there is none, or more than one."""
        if isinstance(label, str):
            places = self._names.find(label)
            return places[0] if len(places) == 1 else None
        return label if label is not None and 0 <= label < self._total else None

    def index(self, label: Label, named: str) -> int:
        """The index of a label's class; raises ValueError with a line that begins with `named` where there is none."""
        if (index := self.find(label)) is None:
            said = "has no label" if label is None else f"has label {shown(repr(label), 60)}"
            raise ValueError(
                f"{named} {said}, which is none of the {self._total} classes; fix it or the list of classes"
            )
        return index


def read_classes(folder: Path, field: str) -> list[str] | None:
    """The class names listed beside shards; None where there is no list.

    Raises:
        ValueError: the list is damaged, empty, or holds a name twice.
    """
    path = next((folder / name for name in CLASS_FILES if os.path.lexists(folder / name)), None)
    if path is None:
        return None
    try:
        content = read_bounded(path, MOST_LISTED)
        if path.suffix == ".json":
            lines = parse_json(content)
        else:
            lines = [line for line in content.decode("utf-8-sig").splitlines() if clean(line)]
        if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
            raise ValueError("is no list of names")
        names: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            try:
                name = class_name(line)
            except ValueError as error:
                raise ValueError(f"name {number} {error}") from error
            if name in names:
                raise ValueError(f"names {names[name]} and {number} are both {name!r}")
            names[name] = number
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{field}: {str(path)!r} cannot be used ({reason}); fix it") from error
    return list(names)


def names_found(labels: Sequence[tuple[object, Label]], field: str) -> list[str]:
    """The class names of images and labels without a list: the names in natural order, or the numbers from 0.

    Raises:
        ValueError: labels of several kinds, or a number that would make more empty classes than there are images.
    """
    examples: dict[type, object] = {}
    found: dict[Label, object] = {}
    for image, label in labels:
        examples.setdefault(type(label), image)
        found.setdefault(label, image)
    if len(examples) > 1:
        kinds = {int: "a number", str: "a name", type(None): "no label"}
        said = ", ".join(f"{str(image)!r} has {kinds[kind]}" for kind, image in examples.items())
        raise ValueError(f"{field}: labels must be all numbers or all names: {said}; fix the shards")
    numbers = [label for label in found if isinstance(label, int)]
    if not numbers:
        return sorted((label for label in found if isinstance(label, str)), key=natural)
    most = max(numbers)
    if most + 1 - len(numbers) > len(labels):
        raise ValueError(
            f"{field}: {str(found[most])!r} has label {shown(str(most), 60)}, far more than the "
            f"{counted(len(labels), 'image')}; fix it, or list all classes in {CLASS_FILES[0]}"
        )
    return [str(i) for i in range(most + 1)]
