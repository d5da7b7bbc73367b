"""Classes as users give them: indices, names, or none; as values, or as the text of an option. Without torch."""

import operator
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache

from mvar.settings import raise_problems
from mvar.text import Names, clean, split_names

Label = int | str | None
MOST_ROWS = 10  # of a sheet whose labels were not asked for
MOST_BYTES = 200  # of a class name in a file's name, which file systems limit to 255
_INDEX = re.compile(r"-?[0-9]{1,20}")


def label_ids(labels: Label | Sequence[Label], classes: Sequence[str], null: int) -> list[int]:
    """Class indices of labels given as indices or names; names are compared as `Names.find` does.

    Args:
        labels: -1 and None stand for no class. One label alone gives one index.
        classes: names, in order.
        null: index of the null class.

    Raises:
        ValueError: no label, an index out of range, or a name that is unknown (close ones are listed) or ambiguous.
    """
    labels = [labels] if labels is None or isinstance(labels, (str, int)) else list(labels)
    if not labels:
        raise ValueError("labels is empty: give at least one class index or name, or -1 for no class")
    ids, problems, names = [], [], Names(classes)
    for label in labels:
        try:
            ids.append(_id_of_name(label, classes, names) if isinstance(label, str) else _id_of_index(label, null))
        except ValueError as error:
            problems.append(str(error))
    raise_problems(dict.fromkeys(problems))
    return ids


def parse_labels(text: str | None, classes: Sequence[str]) -> list[Label]:
    """Labels separated by commas, or one whose name holds commas; None takes all classes, or the first few.

    Raises:
        ValueError: text that can be read in two ways, or double quotes that do not match.
    """
    if text is None:
        if len(classes) > MOST_ROWS:
            print(f"the first {MOST_ROWS} of {len(classes)} classes; name others by --labels", file=sys.stderr)
        return list(range(min(len(classes), MOST_ROWS))) if classes else [-1]
    name, cleaned = clean(text), [clean(name) for name in classes]
    if name not in cleaned or _INDEX.fullmatch(name):
        labels = [parse_label(part, classes) for part in split_names(text, "labels")]
        if not labels:
            raise ValueError(f"labels = {text!r}: names no class; give at least one, or leave it out")
        return labels
    parts = [clean(part) for part in name.split(",")]
    if len(parts) > 1 and all(part in cleaned or _INDEX.fullmatch(part) for part in parts):
        i = cleaned.index(name)
        raise ValueError(f"labels has {name!r}: the class of this name or several? For the class, give {i}")
    return [name]


def parse_label(text: str | None, classes: Sequence[str]) -> Label:
    """One label: a number is a class index, all else a name; None for no class.

    Raises:
        ValueError: a number that is the name of a class at another index.
    """
    if text is None:
        return None
    if not _INDEX.fullmatch(name := clean(text)):
        return name
    cleaned = [clean(name) for name in classes]
    if name in cleaned and cleaned.index(name) != int(name):
        i = cleaned.index(name)
        raise ValueError(f"labels has {name}: index {name} or the class named {name!r}? For the class, give {i}")
    return int(name)


def places(names: Sequence[str], others: Sequence[str]) -> list[int]:
    """The index of each name among the others, which may be written as file names; -1 where there is not exactly one.

    Equal sets of classes give each index once.
    """
    exact, as_files = Names(others), Names(map(file_name, map(clean, others)))
    found = [exact.find(name) or as_files.find(file_name(clean(name))) for name in names]
    return [indices[0] if len(indices) == 1 else -1 for indices in found]


@lru_cache(maxsize=1024)  # millions of images have a name
def file_name(name: str) -> str:
    """A class name as part of a file name: cut, with "_" for characters that file systems dislike."""
    kept = re.sub(r"[^\w.-]+", "_", clean(name)).encode()[:MOST_BYTES].decode(errors="ignore")
    return kept.strip("._") or "image"


def _id_of_index(label: int | None, null: int) -> int:
    if label is None:
        return null
    try:
        number = operator.index(label)
    except TypeError:
        raise ValueError(f"labels has {label!r}: give a class index, a class name, or -1 for no class") from None
    if not -1 <= number < null:
        choices = f"an index from 0 to {null - 1}, or -1 for no class" if null else "-1, as this model has no classes"
        raise ValueError(f"labels has {number}: give {choices}")
    return null if number == -1 else number


def _id_of_name(name: str, classes: Sequence[str], names: Names) -> int:
    found = names.find(name)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"labels has {name!r}: {len(found)} classes have this name; give an index of {found}")
    folded, asked = [clean(known).casefold() for known in classes], clean(name).casefold()
    close = [known for known, plain in zip(classes, folded, strict=True) if asked in plain][:5]
    close += [classes[folded.index(match)] for match in get_close_matches(asked, folded, n=5)]
    hint = ", ".join(dict.fromkeys(close)) or ", ".join(classes[:10]) or "none, give -1"
    raise ValueError(f"labels has {name!r}: no class of this name; {'close' if close else 'classes'}: {hint}")
