"""Classes as the options --labels and --label name them."""

import re
import sys
from typing import TYPE_CHECKING

from mvar.text import clean, split_names

if TYPE_CHECKING:
    from mvar.model import Model
    from mvar.sampling.labels import Label

MOST_ROWS = 10  # of a sheet whose labels were not asked for
_INDEX = re.compile(r"-?[0-9]{1,20}")


def parse_labels(text: str | None, model: "Model") -> list["Label"]:
    """Labels between commas, or one whose name holds some; None takes all classes, or the first few.

    Raises:
        ValueError: text that can be read in two ways, or double quotes that do not match.
    """
    classes = [clean(name) for name in model.classes]
    if text is None:
        if len(classes) > MOST_ROWS:
            print(f"the first {MOST_ROWS} of {len(classes)} classes; name others by --labels", file=sys.stderr)
        return list(range(min(len(classes), MOST_ROWS))) if classes else [-1]
    whole = clean(text)
    if whole not in classes or _INDEX.fullmatch(whole):
        named = [parse_label(name, model) for name in split_names(text, "labels")]
        if not named:
            raise ValueError(f"labels = {text!r}: names no class; give at least one, or leave it out")
        return named
    several = [clean(name) for name in whole.split(",")]
    if len(several) > 1 and all(name in classes or _INDEX.fullmatch(name) for name in several):
        i = classes.index(whole)
        raise ValueError(f"labels has {whole!r}: the class of this name or several? For the class, give {i}")
    return [whole]


def parse_label(text: str | None, model: "Model") -> "Label":
    """One label: a number is a class's index, all else its name; None for no class.

    Raises:
        ValueError: a number that is the name of a class at another index.
    """
    if text is None:
        return None
    if not _INDEX.fullmatch(name := clean(text)):
        return name
    classes = [clean(name) for name in model.classes]
    if name in classes and classes.index(name) != int(name):
        i = classes.index(name)
        raise ValueError(f"labels has {name}: index {name} or the class named {name!r}? For the class, give {i}")
    return int(name)
