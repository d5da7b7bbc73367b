"""The samples of a webdataset shard, local or streamed, their labels, and the classes that these name."""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from mvar.data.images.folders import OTHERS, SUFFIXES
from mvar.data.images.layout import hidden
from mvar.text import Names, clean, some

IMAGES, LABELS = tuple(suffix[1:] for suffix in SUFFIXES), ("cls", "json")
CLASS_FILES = ("classes.txt", "classes.json")
NO_IMAGE = "has no image of a kind that is read"
WHOLE = re.compile(r"[+-]?[0-9]+")

Label = int | str | None
Fields = dict[str, tuple[tarfile.TarInfo, bytes]]  # of one key by suffix, with what was read of each


class Sample(NamedTuple):
    """An image and its label: consecutive members of a shard with one key.

    Attributes:
        name: of the image's member, or of another one where there is no image.
        offset, size: where the image's bytes lie in the shard.
        content: these bytes, in a stream.
        problem: why it cannot be used, or None.
    """

    name: str
    label: Label
    offset: int = 0
    size: int = 0
    content: bytes = b""
    problem: str | None = None


def key_of(name: str) -> str:
    """The key of a member: its name up to the first dot of the last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def samples(file: IO[bytes], *, stream: bool) -> Iterator[Sample]:
    """The samples of a tar with an image (of other kinds too, as a problem) or a label, in order.

    Args:
        stream: whether to read the images too, and `file` from beginning to end; it may then be compressed.

    Raises:
        ValueError: the reason why the tar cannot be read to its end.
    """
    now, fields = "", Fields()
    for key, kind, info, content in _members(file, stream):
        if key != now or kind in fields:
            yield from _sample(fields)
            now, fields = key, {}
        fields[kind] = info, content
    yield from _sample(fields)


def _members(file: IO[bytes], stream: bool) -> Iterator[tuple[str, str, tarfile.TarInfo, bytes]]:
    """Key, suffix and place of each file that is not hidden, with the content of labels, and in a stream of images."""
    last = ""
    try:
        tar: Any  # whose stubs lack some attributes
        with tarfile.open(fileobj=file, mode="r|*" if stream else "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # which would grow with the tar
                last, key = info.name, key_of(info.name)
                kind = last[len(key) + 1 :].lower()
                if info.isreg() and not any(map(hidden, PurePosixPath(last).parts)):
                    is_read = kind in LABELS or (stream and kind in IMAGES)
                    yield key, kind, info, tar.extractfile(info).read() if is_read else b""
            rest = tar.fileobj.read(tarfile.RECORDSIZE)
        if not rest or rest.strip(b"\0"):  # tarfile takes a damaged header for the end mark
            raise tarfile.ReadError("cut short or damaged")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        reason = f"breaks off near {last!r}" if last else "is no plain .tar file"
        raise ValueError(f"{reason} ({error})") from error


def _sample(fields: Fields) -> Iterator[Sample]:
    image = next((kind for kind in IMAGES if kind in fields), None)
    text = next((kind for kind in LABELS if kind in fields), None)
    label, problem = None, None
    try:
        label = parse_label(text, fields[text][1]) if text else None
    except ValueError as error:
        problem = str(error)
    if image:
        info, content = fields[image]
        yield Sample(info.name, label, info.offset_data, info.size, content, problem)
    elif label is not None or any(f".{kind}".startswith(OTHERS) for kind in fields):
        info, _ = next(iter(fields.values()))
        yield Sample(info.name, label, problem=f"{NO_IMAGE}, only {some([f'.{kind}' for kind in fields])}")


# --- labels and classes ---


def parse_label(kind: str, content: bytes) -> Label:
    """The label in a .cls or .json ({"label": ...}): a number from 0 or a name; None where it has none.

    Raises:
        ValueError: the reason why it is no label.
    """
    try:
        label = content.decode("utf-8") if kind == "cls" else json.loads(content)
    except ValueError as error:
        raise ValueError(f"its .{kind} cannot be read ({error})") from error
    if kind == "json":
        label = label.get("label") if isinstance(label, dict) else None
    if isinstance(label, str):
        label = clean(label)
        label = int(label) if WHOLE.fullmatch(label) else label
    if label is None or (isinstance(label, str) and label) or (type(label) is int and label >= 0):
        return label
    raise ValueError(f"its label is {label!r}, neither a number from 0 nor a name")


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
        if label is None:
            raise ValueError(f"{named} has no label beside it; pack each image and its label together")
        if (index := self.find(label)) is None:
            raise ValueError(
                f"{named} has label {label!r}, which is none of the {self._total} classes; "
                "fix it or the list of classes"
            )
        return index


def read_classes(folder: Path, field: str) -> list[str] | None:
    """The class names listed beside shards; None where there is no list.

    Raises:
        ValueError: the list cannot be read, is empty, or holds a name twice.
    """
    path = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if clean(line)]
        if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
            raise ValueError("is no list of names")
        names = [clean(line) for line in lines]
        if twice := [name for name, n in Counter(names).items() if n > 1]:
            raise ValueError(f"lists {some(twice)} twice")
    except (OSError, ValueError) as error:
        raise ValueError(f"{field}: {str(path)!r} cannot be used ({error}); fix it") from error
    return names
