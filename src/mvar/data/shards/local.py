"""Local webdataset shards: plain .tar files whose images are read where they lie, in any order.

A sample is an image and its label with the same key, the name without its suffix: .cls (a number or a class name) or
.json ({"label": number or name}). Each shard is read through once; where its images lie, their sizes, labels and faults
are kept in SHARD.tar.index.json beside it, or in the cache folder where that one cannot be written, until the shard
changes.
"""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from io import BytesIO
from itertools import product
from math import prod
from pathlib import Path
from posixpath import normpath
from typing import Any, NamedTuple

from mvar.data.images.decoding import decode
from mvar.data.images.folders import OTHERS, SUFFIXES, kinds
from mvar.data.reading import mark
from mvar.data.shards.labels import Classes, Label, class_name, names_found, parse_json, read_classes
from mvar.data.shards.tar import MOST_IMAGE, BrokenTar, samples
from mvar.data.workers import in_threads
from mvar.files import cache_folder, read_bounded, write_text
from mvar.progress import track
from mvar.text import counted, some

INDEX_VERSION = 3
OPEN_SHARDS = 128  # whose descriptors are kept
MOST_SHARDS = 1_000_000
INDEX_BYTES, INDEX_SHARE = 2**20, 16  # an index has at most INDEX_BYTES + INDEX_SHARE * the bytes of its shard
RANGE = re.compile(r"\{([0-9]{1,18})\.\.([0-9]{1,18})\}")


class Member(NamedTuple):
    """One image inside a shard.

    Attributes:
        name: of the tar's member.
        offset, size: where its bytes lie in the shard.
        width, height: in pixels, upright.
        mark: a hash of its bytes; see `mvar.data.reading.mark`.
        problem: why it cannot be used, or None.
    """

    shard: Path
    name: str
    offset: int
    size: int
    width: int = 0
    height: int = 0
    mark: str = ""
    problem: str | None = None

    def __fspath__(self) -> str:
        return f"{self.shard}{normpath(f'/./{self.name}')}"  # inside the shard, whatever the name

    def __str__(self) -> str:
        return self.__fspath__()

    @property
    def key(self) -> str:
        """The sample's key."""
        return self.name.rpartition(".")[0]

    def read(self) -> bytes:
        """Its bytes; raises ValueError with the reason where they cannot be read."""
        if self.problem is not None:
            raise ValueError(self.problem)
        try:
            descriptor = _descriptor(self.shard)  # held, so that it stays open
            content = os.pread(descriptor.number, self.size, self.offset)
        except OSError as error:
            raise ValueError(f"the shard cannot be read ({error.strerror or error})") from error
        if len(content) < self.size:
            raise ValueError("the shard is cut short")
        return content


Row = tuple[Member, Label]


@dataclass(frozen=True)
class ShardSet:
    """The images of some shards, in the shards' order.

    Attributes:
        root: the folder of the shards.
        paths: the images, good and bad.
        labels: one class index per image, all 0 where there are no classes.
        classes: class names; empty without labels, or with a single one.
    """

    root: Path
    paths: list[Member]
    labels: list[int]
    classes: list[str]

    @classmethod
    def scan(cls, shards: Sequence[Path], field: str = "data", classes: list[str] | None = None) -> "ShardSet":
        """Read the shards' indices, and write those that are missing or out of date.

        Args:
            field: the option that named the shards, for messages.
            classes: as for `ImageFolder.scan`; None takes them from classes.txt (a line each) or classes.json (a list)
                beside the shards, else from the labels themselves.

        Raises:
            ValueError: a shard is missing, compressed or cut short, nothing is an image, a label is missing or no
                class, or a number would make more empty classes than there are images.
        """
        root, named = shards[0].parent, f"{field} = {str(shards[0].parent)!r}"
        rows = _rows(shards, field, named)
        own = _own_classes(shards, field)
        if classes and own is not None and [*map(Classes(classes).find, own)] != [*range(len(classes))]:
            raise ValueError(f"{field}: {str(root)!r} lists other classes than the training set; give one")
        if classes:
            rows = _of_classes(rows, classes, named)
        members, used = [member for member, _ in rows], [row for row in rows if row[0].problem is None]
        names = own if classes is None else classes
        names = names_found(used, field) if names is None else names
        if len(names) < 2:
            return cls(root, members, [0] * len(members), [])
        numbers = Classes(names)
        labels = [
            0 if member.problem is not None else numbers.index(label, f"{field}: {str(member)!r}")
            for member, label in rows
        ]
        filled = {label for member, label in zip(members, labels, strict=True) if member.problem is None}
        if classes is None and len(filled) < len(names):
            empty = some([repr(name) for i, name in enumerate(names) if i not in filled])
            said = f"{len(names) - len(filled):,} of {len(names):,} classes have no images: {empty}"
            warnings.warn(f"{field}: {said}", stacklevel=2)
        return cls(root, members, labels, names)


def expand(pattern: str) -> list[str]:
    """The names that a pattern with number ranges in braces stands for: a-{08..10} is a-08, a-09 and a-10."""
    texts = RANGE.split(pattern)  # with the two ends of every range
    ranges = []
    for first, last in zip(texts[1::3], texts[2::3], strict=True):
        ranges.append(range(int(first), int(last) + 1))
        if not ranges[-1]:
            said = f"{{{first}..{last}}} counts down; give the lower number first"
            raise ValueError(f"data = {pattern!r}: {said}")
    if (total := prod(numbers.stop - numbers.start for numbers in ranges)) > MOST_SHARDS:
        raise ValueError(f"data = {pattern!r}: stands for {total:,} shards; give at most {MOST_SHARDS:,}")
    widths = [len(first) for first in texts[1::3]]
    return [
        texts[0] + "".join(f"{i:0{width}d}{text}" for i, width, text in zip(chosen, widths, texts[3::3], strict=True))
        for chosen in product(*ranges)
    ]


def _rows(shards: Sequence[Path], field: str, named: str) -> list[Row]:
    """The samples of all shards; a warning counts the images of other kinds."""
    if missing := [path for path in shards if not os.path.isfile(path)]:
        problem = "is a broken link" if os.path.islink(missing[0]) else "does not exist"
        problem = "is not a file" if os.path.exists(missing[0]) else problem
        more = f" ({len(missing):,} are missing in all)" if len(missing) > 1 else ""
        raise ValueError(f"{field}: shard {str(missing[0])!r} {problem}{more}; give the names of .tar files")
    _descriptor.cache_clear()  # a shard may have been replaced since it was last open
    others = Counter[str]()
    rows = [row for shard in shards for row in _index(shard, field, others)]
    if not any(member.name for member, _ in rows):
        wanted = " ".join(SUFFIXES)
        raise ValueError(f"{field} = {str(shards[0])!r}: {rows[0][0].problem}; give shards with {wanted}")
    if others:
        warnings.warn(f"{named}: ignores {kinds(others)}; convert what you need to PNG", stacklevel=3)
    return rows


def _of_classes(rows: list[Row], classes: Sequence[str], named: str) -> list[Row]:
    """The samples without those of other classes, which a warning counts."""
    known = Classes(classes)
    labels = dict.fromkeys(label for _, label in rows)
    lacking = dict.fromkeys(label for label in labels if label is not None and known.find(label) is None)
    left = [(member, label) for member, label in rows if label not in lacking or member.problem is not None]
    if len(left) < len(rows):
        unknown = some([str(label) for label in lacking])
        if not left:
            raise ValueError(f"{named}: has labels {unknown}, the training images are of {some(classes)}; correct them")
        number = counted(len(rows) - len(left), "image")
        warnings.warn(f"{named}: leaves out {number} of classes that the training images lack: {unknown}", stacklevel=3)
    return left


def _own_classes(shards: Sequence[Path], field: str) -> list[str] | None:
    """The class names listed beside the shards, in one or several folders."""
    first, *others = dict.fromkeys(shard.parent for shard in shards)
    own = read_classes(first, field)
    for folder in others:
        if read_classes(folder, field) != own:
            raise ValueError(f"{field}: {str(first)!r} and {str(folder)!r} do not list the same classes; give one list")
    return own


# --- the index of one shard -----------------------------------------------------------------------------------------


def _index(shard: Path, field: str, others: Counter[str]) -> list[Row]:
    """A shard's samples, from its index if that still fits, else read and stored; `others` counts other images."""
    status = shard.stat()
    stamp = {"version": INDEX_VERSION, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    in_cache = blake2b(os.fsencode(shard.resolve()), digest_size=16).hexdigest()
    places = [shard.with_name(f"{shard.name}.index.json"), cache_folder("shards") / f"{in_cache}.json"]
    for place in places:
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):  # none yet, or damaged
            stored = parse_json(read_bounded(place, INDEX_BYTES + INDEX_SHARE * status.st_size))
            if stored.items() >= stamp.items() and stored["samples"]:
                rows = [_stored(shard, row, status.st_size) for row in stored["samples"]]
                if all(kind.startswith(OTHERS) and type(n) is int and n > 0 for kind, n in stored["others"].items()):
                    others.update(stored["others"])
                    return rows

    own = Counter[str]()
    found = list(_samples(shard, field, own))
    others.update(own)
    checked = track(in_threads(_checked, [member for member, _ in found]), len(found), f"indexing {shard.name}")
    indexed = [(member, label) for member, (_, label) in zip(checked, found, strict=True)]
    text = json.dumps({**stamp, "others": own, "samples": [[*member[1:], label] for member, label in indexed]})
    for place in places:
        with suppress(OSError):  # where neither can be written, the next run reads the shard again
            write_text(place, text)
            break
    return indexed


def _stored(shard: Path, row: list[Any], length: int) -> Row:
    """A sample as the index keeps it; raises ValueError or TypeError where it cannot be of this shard."""
    *where, label = row
    member = Member(shard, *where)
    numbers = member.offset, member.size, member.width, member.height
    if not (
        isinstance(member.name, str)
        and all(type(number) is int and number >= 0 for number in numbers)
        and member.size <= min(MOST_IMAGE, length - member.offset)
        and isinstance(member.mark, str)
        and (isinstance(member.problem, str) or (member.problem is None and member.width and member.height))
        and (label is None or (type(label) is int and label >= 0) or class_name(label) == label)
    ):
        raise ValueError("damaged")
    return member, label


def _samples(shard: Path, field: str, others: Counter[str]) -> Iterator[Row]:
    """The samples of a shard that have an image or a label; images are not opened."""
    try:
        with open(shard, "rb") as file:
            for sample in samples(file, others, stream=False):
                image, problem, label = sample.image, sample.problem, None
                try:
                    label = sample.read_label()
                except ValueError as error:
                    problem = problem or str(error)
                offset, size = (image.offset, image.size) if image and problem is None else (0, 0)
                yield Member(shard, sample.name, offset, size, problem=problem), label
    except OSError as error:
        raise ValueError(f"{field} = {str(shard)!r}: cannot be read ({error.strerror or error})") from error
    except BrokenTar as error:
        where = f"breaks off after {error.last!r}" if error.last else "is no plain .tar file"
        raise ValueError(f"{field} = {str(shard)!r}: {where} ({error}); write or fetch this shard again") from error


def _checked(member: Member) -> Member:
    """The member with its size in pixels, or with the reason why it cannot be used."""
    try:
        content = member.read()
        width, height = decode(BytesIO(content)).size
    except ValueError as error:
        return member._replace(problem=str(error))
    return member._replace(width=width, height=height, mark=mark(content))


class _Descriptor:
    """An open file that is closed when its last user drops it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@lru_cache(maxsize=OPEN_SHARDS)
def _descriptor(shard: Path) -> _Descriptor:
    return _Descriptor(os.open(shard, os.O_RDONLY))
