"""How sets of images lie in folders: what is hidden, which names are those of splits, and which folders are classes."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mvar.text import Names, some

# Training first; of the others the first that exists is used for validation.
SPLITS = (
    ("train", "training", "trainval"),
    ("val", "valid", "validation", "dev"),
    ("test", "testing"),
    ("eval", "evaluation"),
)
FILLERS = ("set", "data", "dataset", "images", "imgs")  # a trainset, or a train set, is a train
RANKS = {word + end: rank for rank, words in enumerate(SPLITS) for word in words for end in ("", *FILLERS)}
# What file servers and systems leave in folders.
SYSTEM = ("@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found", "system volume information")


def hidden(name: str) -> bool:
    """Whether a file or folder is ignored by its name: it begins with a dot, or a system made it."""
    return name.startswith(".") or name.casefold() in SYSTEM


def split_rank(name: str) -> int | None:
    """The split that a name's first fitting word stands for, as its index in SPLITS (0 is training), or None."""
    return next((RANKS[word] for word in _words(name) if word in RANKS), None)


def splits(names: Collection[str]) -> dict[str, int]:
    """Which of the folders in one are its splits: name to rank, by rank; empty where none are.

    Folders named as splits are, such as train, Val2017 or test_set, are splits if both training and validation are
    among them or there are no other folders.
    """
    found = {name: rank for name in names if (rank := split_rank(name)) is not None}
    plain = {name: rank for name, rank in found.items() if all(word in (*RANKS, *FILLERS) for word in _words(name))}
    is_split = len(plain) == len(names) or (0 in plain.values() and any(plain.values()))
    return dict(sorted(plain.items(), key=lambda item: item[1])) if is_split else {}


def check_classes(folders: Mapping[Path, Sequence[Path]], named: str, known: Names) -> None:
    """Check that folders, with the images inside each at any depth, are classes.

    Args:
        named: the field and its value, for messages.
        known: classes; a folder of such a name is one, whatever it holds.

    Raises:
        ValueError: the folders are splits, or the only one holds the class folders themselves.
    """
    if len(parts := splits([folder.name for folder in folders])) > 1:
        first = str(next(iter(folders)).with_name(next(iter(parts))))
        raise ValueError(f"{named}: is split into {some(parts)}; give one of them, such as {first!r}")
    for folder, paths in folders.items():
        if (len(folders) > 1 and not splits([folder.name])) or known.find(folder.name):
            continue
        parents = {os.path.dirname(path) for path in paths}
        common = os.path.commonpath(parents)
        if common not in parents:  # a single folder inside another, as <class>/images, is no set of classes
            inner = sorted({os.path.relpath(parent, common).split(os.sep)[0] for parent in parents})
            raise ValueError(f"{named}: {folder.name}/ holds folders ({some(inner)}) and is no class; give {common!r}")


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.casefold())
