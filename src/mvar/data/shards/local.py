"""Local webdataset shards: plain .tar files whose images are read where they lie, in any order.

Each shard is read through once; where its images lie, their sizes, labels and faults are kept in SHARD.tar.index.json
beside it, or in the cache folder where that one cannot be written, until the shard changes.
"""

import json
import os
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from mvar.data.images.folders import SUFFIXES, natural
from mvar.data.reading import load
from mvar.data.shards.samples import CLASS_FILES, NO_IMAGE, Classes, Label, key_of, read_classes, samples
from mvar.data.workers import in_threads
from mvar.files import cache_folder, write_text
from mvar.progress import track
from mvar.text import counted, some

INDEX_VERSION = 4
RANGE = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")


class Member(NamedTuple):
    """One image inside a shard.

    Attributes:
        offset, size: where its bytes lie in the shard.
        width, height: in pixels, upright.
        mark: a hash of its bytes; see `mvar.data.reading.Loaded`.
        problem: why it cannot be used, or None.
        label: of its sample.
    """

    shard: Path
    name: str
    offset: int
    size: int
    width: int = 0
    height: int = 0
    mark: str = ""
    problem: str | None = None
    label: Label = None

    def __fspath__(self) -> str:
        return os.path.normpath(f"{self.shard}/{self.name}")  # tar -C folder . names them ./a.png

    def __str__(self) -> str:
        return self.__fspath__()

    @property
    def key(self) -> str:
        """The sample's key."""
        return key_of(self.name)

    def read(self) -> bytes:
        """Its bytes; raises ValueError with the reason where they cannot be read."""
        if self.problem is not None:
            raise ValueError(self.problem)
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise ValueError(f"the shard cannot be read ({error.strerror})") from error
        if len(content) < self.size:
            raise ValueError("the shard is cut short")
        return content


@dataclass(frozen=True)
class ShardSet:
    """The images of some shards, in the shards' order.

    Attributes:
        root: the folder of the first shard.
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
            classes: as for `ImageFolder.scan`; None takes them from a list beside the first shard, else from labels.

        Raises:
            ValueError: a shard cannot be read, nothing is an image, or labels do not name classes.
        """
        root, named = shards[0].parent, f"{field} = {str(shards[0].parent)!r}"
        members = _members(shards, field)
        own = read_classes(root, field)
        if classes and own is not None and [*map(Classes(classes).find, own)] != [*range(len(classes))]:
            raise ValueError(f"{field}: {str(root)!r} lists other classes than the training set; give one")
        if classes:
            members = _of_classes(members, classes, named)
        names = own if classes is None else classes
        if names is None:
            names = _names_found([member for member in members if member.problem is None], field)
        if len(names) < 2:
            return cls(root, members, [0] * len(members), [])
        index = Classes(names).index
        labels = [0 if one.problem else index(one.label, f"{field}: {str(one)!r}") for one in members]
        filled = {label for member, label in zip(members, labels, strict=True) if member.problem is None}
        if classes is None and len(filled) < len(names):
            empty = some([repr(name) for i, name in enumerate(names) if i not in filled])
            said = f"{len(names) - len(filled):,} of {len(names):,} classes have no images: {empty}"
            warnings.warn(f"{field}: {said}", stacklevel=2)
        return cls(root, members, labels, names)


def expand(pattern: str) -> list[str]:
    """The names that a pattern with number ranges in braces stands for: a-{08..10} is a-08, a-09 and a-10."""
    found = RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    if int(last) < int(first):
        raise ValueError(f"data = {pattern!r}: {found[0]} counts down; give the lower number first")
    ends = expand(pattern[found.end() :])
    numbers = range(int(first), int(last) + 1)
    return [f"{pattern[: found.start()]}{i:0{len(first)}d}{end}" for i in numbers for end in ends]


def _members(shards: Sequence[Path], field: str) -> list[Member]:
    """The samples of all shards."""
    if missing := [path for path in shards if not path.is_file()]:
        raise ValueError(f"{field}: shard {str(missing[0])!r} does not exist; give the names of .tar files")
    members = [member for shard in shards for member in _index(shard, field)]
    if not members:
        wanted = " ".join(f"KEY{suffix}" for suffix in SUFFIXES)
        raise ValueError(f"{field} = {str(shards[0])!r}: holds no images; give shards with members {wanted}")
    lone = next((one for one in members if one.label is not None and NO_IMAGE in (one.problem or "")), None)
    bare = next((one for one in members if one.label is None and one.problem is None), None)
    if lone and bare:
        raise ValueError(
            f"{field}: {str(lone)!r} has no image beside it, and {str(bare)!r} no label; "
            "pack each image and its label together, as tar --sort=name does"
        )
    return members


def _of_classes(members: list[Member], classes: Sequence[str], named: str) -> list[Member]:
    """The samples without those of other classes, which a warning counts."""
    known = Classes(classes)
    labels = dict.fromkeys(member.label for member in members)
    lacking = dict.fromkeys(label for label in labels if label is not None and known.find(label) is None)
    left = [member for member in members if member.label not in lacking or member.problem is not None]
    if len(left) < len(members):
        unknown = some([str(label) for label in lacking])
        if not left:
            raise ValueError(f"{named}: has labels {unknown}, the training images are of {some(classes)}; correct them")
        number = counted(len(members) - len(left), "image")
        warnings.warn(f"{named}: leaves out {number} of classes that the training images lack: {unknown}", stacklevel=3)
    return left


def _names_found(members: Sequence[Member], field: str) -> list[str]:
    """The class names of images without a list: the names in natural order, or the numbers from 0.

    Raises ValueError for labels of several kinds, or a number that makes more empty classes than there are images.
    """
    first = dict[Label, Member]()
    for member in members:
        first.setdefault(member.label, member)
    kinds = {type(label): label for label in first}
    if len(kinds) > 1:
        said = " and ".join(f"{str(first[label])!r} has {label!r}" for label in kinds.values())
        raise ValueError(f"{field}: each image needs a label, all a number or all a name: {said}; fix the shards")
    if int not in kinds:
        return sorted((label for label in first if isinstance(label, str)), key=natural)
    most = max(label for label in first if isinstance(label, int))
    if most + 1 - len(first) > len(members):
        raise ValueError(
            f"{field}: {str(first[most])!r} has label {most}, far more than the {counted(len(members), 'image')}; "
            f"fix it, or list all classes in {CLASS_FILES[0]}"
        )
    return [str(i) for i in range(most + 1)]


# --- the index of one shard ---


def _index(shard: Path, field: str) -> list[Member]:
    """A shard's samples, from its index if that still fits, else read and stored."""
    status = shard.stat()
    stamp = {"version": INDEX_VERSION, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    in_cache = blake2b(os.fsencode(shard.resolve()), digest_size=16).hexdigest()
    places = [shard.with_name(f"{shard.name}.index.json"), cache_folder("shards") / f"{in_cache}.json"]
    for place in places:
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):  # none yet, or damaged
            stored = json.loads(place.read_bytes())
            if stored.items() >= stamp.items():
                return [Member(shard, *row) for row in stored["samples"]]

    try:
        with open(shard, "rb") as file:
            found = [
                Member(shard, sample.name, sample.offset, sample.size, problem=sample.problem, label=sample.label)
                for sample in samples(file, stream=False)
            ]
    except (OSError, ValueError) as error:
        raise ValueError(f"{field} = {str(shard)!r}: {error}; write or fetch this shard again") from error
    members = list(track(in_threads(_checked, found), len(found), f"indexing {shard.name}"))
    text = json.dumps({**stamp, "samples": [member[1:] for member in members]})
    for place in places:
        with suppress(OSError):  # where neither can be written, the next run reads the shard again
            write_text(place, text)
            break
    return members


def _checked(member: Member) -> Member:
    """The member with its size in pixels, or with the reason why it cannot be used."""
    loaded = load(member)
    if isinstance(loaded, str):
        return member._replace(problem=loaded)
    return member._replace(width=loaded.size[0], height=loaded.size[1], mark=loaded.mark)
