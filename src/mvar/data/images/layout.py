"""How sets of images lie in folders: what is hidden, which names are those of splits, and which folders are no classes.

A layout is read in one way only or refused: a wrong guess would train on validation images, or on wrong classes.
"""

import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mvar.text import Names, clean, some

# Training first; of the others the first that exists is used for validation.
SPLITS = (
    ("train", "training", "trainval"),
    ("val", "valid", "validation", "dev"),
    ("test", "testing"),
    ("eval", "evaluation"),
)
FILLERS = ("set", "data", "dataset", "images", "imgs")  # a trainset, or a train set, is a train
RANKS = {word + end: rank for rank, words in enumerate(SPLITS) for word in words for end in ("", *FILLERS)}
# Folders of such names are parts of one set where they hold folders of the same names.
PARTS = frozenset(
    (*RANKS, "set", "subset", "dataset", "part", "partition", "split", "fold", "kfold", "cv", "batch", "chunk", "shard")
)
WORD = re.compile(r"[^\W\d_]+")
HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # where trainA and RGBTrain are cut
# What file servers and systems leave in folders: thumbnails, deleted files, snapshots.
SYSTEM = frozenset(
    ("@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "~snapshot", "__macosx")
    + ("$recycle.bin", "recycler", "system volume information", "lost+found", "__pycache__")
)


def hidden(name: str) -> bool:
    """Whether a file or folder is ignored by its name: it begins with a dot, or a system made it."""
    return name.startswith(".") or name.casefold() in SYSTEM


def split_rank(name: str) -> int | None:
    """The split that a name's first fitting word stands for, as its index in SPLITS (0 is training), or None."""
    return next((RANKS[word] for word in _words(name) if word in RANKS), None)


def splits(names: Collection[str]) -> dict[str, int]:
    """Which of the folders in one are its splits: name to rank, by rank; empty where none are.

    Folders named only as splits are, such as train, Val2017 or test_set, are splits if both training and validation are
    among them or there are no other folders. Those with other words too, such as img_train and img_val, are splits if
    all folders have such names.
    """
    found = {name: rank for name in names if (rank := split_rank(name)) is not None}
    ranks = dict(sorted(found.items(), key=lambda item: item[1]))
    plain = {name: rank for name, rank in ranks.items() if all(word in (*RANKS, *FILLERS) for word in _words(name))}
    for chosen in (plain, ranks if len(ranks) == len(names) else {}):
        if 0 in chosen.values() and any(chosen.values()):
            return chosen
    return plain if len(plain) == len(names) else {}


def check_classes(folders: Mapping[Path, Sequence[Path]], named: str, known: Names) -> None:
    """Check that folders, with the images inside each at any depth, are classes.

    Args:
        named: the field and its value, for messages.
        known: classes; a folder of such a name is one, whatever it holds.

    Raises:
        ValueError: the folders are splits, hold the class folders themselves, or hold splits; or they hold folders of
            the same names and have names of PARTS. Under other names the latter is a warning.
    """
    if len(parts := splits([folder.name for folder in folders])) > 1:
        first = str(next(iter(folders)).with_name(next(iter(parts))))
        raise ValueError(f"{named}: is split into {_and(parts)}; give one of them, such as {first!r}")
    branches = {folder: _branches(folder, paths) for folder, paths in folders.items()}
    for folder, (where, inner) in branches.items():
        if where is None:
            continue
        if (len(folders) == 1 or splits([folder.name])) and not known.find(folder.name):
            raise ValueError(f"{named}: {folder.name}/ holds folders ({some(inner)}) and is no class; give {where!r}")
        if len(parts := splits(inner)) > 1:
            raise ValueError(
                f"{named}: {folder.name}/ is split into {_and(parts)}; put the classes into the splits, as "
                f"{next(iter(parts))}/{folder.name}/, not the splits into the classes"
            )
    count = Counter(name for _, inner in branches.values() for name in inner)
    shared = {folder: [name for name in inner if count[name] > 1] for folder, (_, inner) in branches.items()}
    for folder, (where, inner) in branches.items():
        if where is not None and 2 * len(shared[folder]) > len(inner) and not known.find(folder.name):
            other = next(f for f, names in shared.items() if f != folder and shared[folder][0] in names)
            said = f"{folder.name}/ and {other.name}/ hold folders of the same names ({some(shared[folder])})"
            if any(word in PARTS for f, names in shared.items() if names for word in _words(f.name)):
                raise ValueError(
                    f"{named}: {said}, as parts of one set do; give one of them, "
                    "or put the images of each class into its folder itself"
                )
            classes = some([folder.name for folder in folders])
            warnings.warn(f"{named}: {said}: taken for classes {classes}", stacklevel=3)
            break


def _words(name: str) -> list[str]:
    """The words of a name without case; trainA has two."""
    return WORD.findall(HUMP.sub(" ", clean(name)).casefold())


def _branches(folder: Path, paths: Sequence[Path]) -> tuple[str | None, list[str]]:
    """Where a folder without images of its own branches into several, and their names; else None and the names below.

    A single folder inside another, as <class>/images, is no branch.
    """
    parents = {os.path.dirname(path) for path in paths}
    common = os.path.commonpath(parents)
    if common in parents:
        return None, [part for part in os.path.relpath(common, folder).split(os.sep) if part != "."]
    return common, sorted({os.path.relpath(parent, common).split(os.sep)[0] for parent in parents})


def _and(names: Collection[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}"
