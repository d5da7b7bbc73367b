"""Local webdataset shards: plain .tar files whose images are read where they lie, in any order.

A sample is a run of members with one key, the name up to the first dot: an image (.png, .jpg, .jpeg, .webp) and its
label, .cls (a number or a class name) or .json ({"label": number or name}). Each shard is read through once; where its
images lie, their sizes, labels and faults are kept in SHARD.tar.index.json beside it, or in the cache folder where that
one cannot be written, until the shard changes.
"""

import json
import os
import re
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from mvar.data.decoding import decode
from mvar.data.images import SUFFIXES, natural
from mvar.data.progress import track
from mvar.data.threads import in_threads
from mvar.files import write_text
from mvar.text import counted, some

INDEX_VERSION = 1
OPEN_SHARDS = 128  # whose descriptors are kept
CLASS_FILES = ("classes.txt", "classes.json")
KEY = re.compile(r"(?P<key>(?:.*/)?[^/.]+)\.(?P<suffix>[^/]*)")
META = re.compile(r"__[^/]*__($|/)")  # what webdataset passes over
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")

Label = int | str | None
Sample = tuple["Member", Label]


class Member(NamedTuple):
    """One image inside a shard.

    Attributes:
        name: of the tar's member.
        offset, size: where its bytes lie in the shard.
        width, height: in pixels, upright.
        problem: why it cannot be used, or None.
    """

    shard: Path
    name: str
    offset: int
    size: int
    width: int = 0
    height: int = 0
    problem: str | None = None

    def __fspath__(self) -> str:
        return f"{self.shard}/{self.name}"

    def __str__(self) -> str:
        return self.__fspath__()

    @property
    def key(self) -> str:
        """The sample's key."""
        found = KEY.fullmatch(self.name)
        return found["key"] if found else self.name

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height as the index knows them; raises ValueError with the reason where it cannot be used."""
        if self.problem is not None:
            raise ValueError(self.problem)
        return self.width, self.height

    def open(self) -> BytesIO:
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
        return BytesIO(content)


@dataclass(frozen=True)
class ShardSet:
    """The images of some shards, in the shards' order.

    Attributes:
        root: the folder of the shards.
        paths: the images, good and bad.
        labels: one class index an image, all 0 where there are no classes.
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
            classes: class names that the labels refer to, of the training set; images of other classes are then left
                out with a warning. None takes them from classes.txt (a line each) or classes.json (a list) beside the
                shards, else from the labels themselves.

        Raises:
            ValueError: one line with field, shard, key and fix where a shard is missing, compressed or cut short,
                where nothing is an image, or a label is missing or no class.
        """
        if missing := [str(path) for path in shards if not path.is_file()]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ValueError(f"{field}: shard {missing[0]!r}{more} does not exist; give the names of .tar files")
        _descriptor.cache_clear()  # a shard may have been replaced since it was last open
        samples = [sample for shard in shards for sample in _index(shard, field)]
        if not samples:
            raise ValueError(f"{field} = {str(shards[0])!r}: holds no images; give shards with {' '.join(SUFFIXES)}")
        own = read_classes(shards[0].parent, field)
        if classes and own is not None and own != classes:
            raise ValueError(f"{field}: {str(shards[0].parent)!r} lists other classes than the training set; give one")
        if classes:
            samples = _of_classes(samples, classes, f"{field} = {str(shards[0].parent)!r}")
        classes = classes if classes is not None else own
        used = [(member, label) for member, label in samples if member.problem is None]
        names = _names_found(used, field) if classes is None else classes
        if len(names) < 2:
            return cls(shards[0].parent, [member for member, _ in samples], [0] * len(samples), [])
        numbers = {name: i for i, name in enumerate(names)}
        labels = [
            0 if member.problem is not None else class_index(label, numbers, f"{field}: {str(member)!r}")
            for member, label in samples
        ]
        return cls(shards[0].parent, [member for member, _ in samples], labels, names)


def expand(pattern: str) -> list[str]:
    """The names that a pattern with number ranges in braces stands for: a-{08..10} is a-08, a-09 and a-10."""
    found = RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    head, rest = pattern[: found.start()], expand(pattern[found.end() :])
    numbers = range(int(first), int(last) + 1)
    if not numbers:
        raise ValueError(f"data = {pattern!r}: {found[0]} counts down; give the lower number first")
    return [f"{head}{i:0{len(first)}d}{tail}" for i in numbers for tail in rest]


def read_label(fields: Mapping[str, bytes]) -> Label:
    """The label among a sample's fields by suffix: .cls, else .json; None where there is none.

    Raises:
        ValueError: the reason why it is no label.
    """
    if "cls" in fields:
        text = fields["cls"].decode("utf-8", errors="replace").strip()
        return int(text) if text.isdecimal() else text
    if "json" not in fields:
        return None
    try:
        content = json.loads(fields["json"])
    except ValueError as error:
        raise ValueError(f"its .json cannot be read ({error})") from error
    label = content.get("label") if isinstance(content, dict) else None
    if label is not None and (isinstance(label, bool) or not isinstance(label, (int, str))):
        raise ValueError(f"its label {label!r} is neither a number nor a name")
    return label


def class_index(label: Label, numbers: Mapping[str, int], named: str) -> int:
    """The index of a label among the classes, given as {name: index}.

    Raises:
        ValueError: one line that begins with `named`.
    """
    index = label if isinstance(label, int) else numbers.get(label or "", -1)
    if not 0 <= index < len(numbers):
        said = "has no label" if label is None else f"has label {label!r}"
        raise ValueError(f"{named} {said}, which is none of the {len(numbers)} classes; mend it or the list of classes")
    return index


def read_classes(folder: Path, field: str) -> list[str] | None:
    """The class names listed beside shards; None where there is no list.

    Raises:
        ValueError: the list is damaged or holds a name twice.
    """
    path = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        names = json.loads(text) if path.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except ValueError as error:
        raise ValueError(f"{field}: {str(path)!r} cannot be read ({error}); mend it") from error
    if path.suffix == ".txt":
        names = [name for name in names if name]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len({*names}) < len(names):
        raise ValueError(f"{field}: {str(path)!r} is no list of different class names; mend it")
    return names


def _names_found(samples: Iterable[tuple[Member, Label]], field: str) -> list[str]:
    """The class names of labels that nobody listed: the names in natural order, or the numbers from 0."""
    examples: dict[type, Member] = {}
    found = set()
    for member, label in samples:
        examples.setdefault(type(label), member)
        found.add(label)
    if len(examples) > 1:
        kinds = {int: "a number", str: "a name", type(None): "no label"}
        said = ", ".join(f"{str(member)!r} has {kinds[kind]}" for kind, member in examples.items())
        raise ValueError(f"{field}: labels must be all numbers or all names: {said}; mend the shards")
    if int in examples:
        return [str(i) for i in range(max(label for label in found if isinstance(label, int)) + 1)]
    return sorted((label for label in found if isinstance(label, str)), key=natural)


def _of_classes(samples: list[Sample], classes: Sequence[str], named: str) -> list[Sample]:
    """The samples but those whose label is none of the classes, which a warning counts.

    Raises:
        ValueError: nothing is left.
    """
    known = {None, *classes, *range(len(classes))}
    left = [(member, label) for member, label in samples if label in known or member.problem is not None]
    if len(left) < len(samples):
        unknown = some([str(label) for label in {label: None for _, label in samples if label not in known}])
        if not left:
            raise ValueError(f"{named}: has labels {unknown}, the training images are of {some(classes)}; correct them")
        number = counted(len(samples) - len(left), "image")
        warnings.warn(f"{named}: leaves out {number} of classes that the training images lack: {unknown}", stacklevel=3)
    return left


# --- the index of one shard -----------------------------------------------------------------------------------------


def _index(shard: Path, field: str) -> list[tuple[Member, Label]]:
    """A shard's samples, from its stored index if the shard is still the same, else read anew and stored."""
    status = shard.stat()
    stamp = {"version": INDEX_VERSION, "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    places = [shard.with_name(f"{shard.name}.index.json"), _cached_index(shard)]
    for place in places:
        try:
            stored = json.loads(place.read_text(encoding="utf-8"))
            if stored.items() >= stamp.items():
                return [(Member(shard, *where), label) for *where, label in stored["samples"]]
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            continue  # none yet, or damaged: it is made anew

    found = list(_samples(shard, field))
    checked = track(in_threads(_checked, [member for member, _ in found]), len(found), f"indexing {shard.name}")
    samples = [(member, label) for member, (_, label) in zip(checked, found, strict=True)]
    text = json.dumps({**stamp, "samples": [[*member[1:], label] for member, label in samples]})
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(place, text)
            break
        except OSError:
            continue  # where neither can be written, the next run reads the shard again
    return samples


def _cached_index(shard: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mvar" / "shards" / f"{blake2b(os.fsencode(shard.resolve()), digest_size=16).hexdigest()}.json"


def _checked(member: Member) -> Member:
    """The member with its size in pixels, or with the reason why it cannot be used."""
    try:
        width, height = decode(member.open()).size
    except ValueError as error:
        return member._replace(problem=str(error))
    return member._replace(width=width, height=height)


def _samples(shard: Path, field: str) -> Iterator[tuple[Member, Label]]:
    """The samples of a shard that have an image or a label; images are not opened."""
    key, fields = "", dict[str, Any]()  # of an image its place, of a label its bytes
    for info, content in _members(shard, field):
        found = KEY.fullmatch(info.name)
        if not info.isreg() or META.match(info.name) or found is None:
            continue
        suffix = found["suffix"].lower()
        if found["key"] != key or suffix in fields:
            yield from _sample(shard, key, fields)
            key, fields = found["key"], {}
        if f".{suffix}" in SUFFIXES:
            fields[suffix] = info.name, info.offset_data, info.size
        elif suffix in ("cls", "json"):
            fields[suffix] = content
    yield from _sample(shard, key, fields)


def _sample(shard: Path, key: str, fields: Mapping[str, Any]) -> Iterator[tuple[Member, Label]]:
    place = next((fields[suffix[1:]] for suffix in SUFFIXES if suffix[1:] in fields), None)
    if not fields:
        return
    member = Member(shard, *place) if place else Member(shard, key, 0, 0, problem="has a label but no image")
    try:
        yield member, read_label(fields)
    except ValueError as error:
        yield member._replace(problem=str(error)), None


def _members(shard: Path, field: str) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The members of a tar file, with the contents of labels.

    Raises:
        ValueError: one line with the shard and the last whole member where it breaks off.
    """
    last, length = "", shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar, open(shard, "rb") as file:
            for info in tar:
                last = info.name if info.offset_data + info.size <= length else last
                label = tar.extractfile(info) if info.name.lower().endswith((".cls", ".json")) else None
                yield info, label.read() if label else b""
            file.seek(tar.offset)  # tarfile takes a damaged header for the end
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError("damaged header")
    except tarfile.TarError as error:
        where = f"breaks off after {last!r}" if last else "is no plain .tar file"
        raise ValueError(f"{field} = {str(shard)!r}: {where} ({error}); write or fetch this shard anew") from error


class _Descriptor:
    """An open file that closes when nobody uses it any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@lru_cache(maxsize=OPEN_SHARDS)
def _descriptor(shard: Path) -> _Descriptor:
    return _Descriptor(os.open(shard, os.O_RDONLY))
