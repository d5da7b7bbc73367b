"""Classes as users give them: indices, names, or none."""

import operator
from collections.abc import Sequence
from difflib import get_close_matches

from mvar.sampling.export import file_name
from mvar.settings import raise_problems
from mvar.text import Names, clean

Label = int | str | None


def label_ids(labels: Label | Sequence[Label], classes: Sequence[str], null: int) -> list[int]:
    """Class indices of labels given as indices or names, which are compared as `Names.find` does.

    Args:
        labels: -1 and None stand for no class. One label alone gives one index.
        classes: names, in order.
        null: the null class's index.

    Raises:
        ValueError: no label, an index out of range, or a name that is unknown (close ones are listed) or ambiguous.
    """
    labels = [labels] if labels is None or isinstance(labels, (str, int)) else list(labels)
    if not labels:
        raise ValueError("labels is empty: give at least one class index or name, or -1 for no class")
    ids, problems, names = [], [], Names(classes)
    for label in labels:
        try:
            ids.append(_named(label, classes, names) if isinstance(label, str) else _numbered(label, null))
        except ValueError as error:
            problems.append(str(error))
    raise_problems(dict.fromkeys(problems))
    return ids


def places(names: Sequence[str], others: Sequence[str]) -> list[int]:
    """Where each name stands among the others, which may be written as names of files; -1 where there is not just one.

    Equal sets of classes give each place once.
    """
    exact, as_files = Names(others), Names(map(file_name, map(clean, others)))
    found = [exact.find(name) or as_files.find(file_name(clean(name))) for name in names]
    return [place[0] if len(place) == 1 else -1 for place in found]


def _numbered(label: int | None, null: int) -> int:
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


def _named(name: str, classes: Sequence[str], names: Names) -> int:
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
