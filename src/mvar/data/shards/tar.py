"""The members of a webdataset shard, local or streamed, in groups of one sample each.

A tar's own sizes, links and headers are not trusted: they are checked before anything is read by them.
"""

import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import IO, Any, NamedTuple, Self

from mvar.data.images.folders import OTHERS, SUFFIXES
from mvar.data.images.layout import hidden
from mvar.data.shards.labels import Label, parse_label
from mvar.text import counted, some

IMAGES = tuple(suffix[1:] for suffix in SUFFIXES)
MOST_IMAGE = 2**28  # bytes
LIMITS = {**dict.fromkeys(IMAGES, MOST_IMAGE), "cls": 2**12, "json": 2**20}  # bytes of a member by its suffix
MOST_HEADER = 2**15  # bytes of a long name, or of the pax records of one member
MOST_ENDS = 10  # empty reads of a stream after its end
EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
META = re.compile(r"__.*__")  # parts of names that webdataset ignores


class BrokenTar(ValueError):
    """A tar that cannot be read to its end.

    Attributes:
        last: the last whole member; "" where there is none.
    """

    def __init__(self, last: str, reason: str) -> None:
        super().__init__(reason)
        self.last = last


class Entry(NamedTuple):
    """One member of a tar.

    Attributes:
        key, middle, kind: webdataset's key a/b, .v2 and png of a/b.v2.PNG; all "" for hidden members.
        offset, size: where its bytes lie in the tar.
        link: the member that it is a link to, or "".
        problem: why it cannot be used, or None.
        content: of a label, and in a stream of an image.
    """

    name: str
    key: str = ""
    middle: str = ""
    kind: str = ""
    offset: int = 0
    size: int = 0
    link: str = ""
    problem: str | None = None
    content: bytes = b""

    def bounded(self) -> "Entry":
        """The same entry, with a problem if it is too large to be read."""
        most = LIMITS.get(self.kind, self.size)
        if self.problem is not None or self.size <= most:
            return self
        return self._replace(problem=f"has {self.size:,} bytes, more than the {most:,} that are read")


class Sample(NamedTuple):
    """An image with its label, one of which may be missing."""

    image: Entry | None
    label: Entry | None
    missing: str = "has a label but no image"  # why there is no image

    @property
    def name(self) -> str:
        """The image's name, else the label's."""
        entry = self.image or self.label
        return entry.name if entry else ""

    @property
    def key(self) -> str:
        """The name up to its last dot."""
        return self.name.rpartition(".")[0]

    @property
    def problem(self) -> str | None:
        """Why there is no image to read, or None."""
        return self.image.problem if self.image else self.missing

    def read_label(self) -> Label:
        """The label, or None; raises ValueError with the reason where it cannot be used."""
        if self.label is None:
            return None
        if self.label.problem is not None:
            raise ValueError(f"its .{self.label.kind} {self.label.problem}")
        return parse_label(self.label.kind, self.label.content)


def samples(file: IO[bytes], others: Counter[str], *, stream: bool) -> Iterator[Sample]:
    """The samples of a tar in the order of their first members, with the contents of labels.

    In a local file, image and label may lie anywhere and may be links to other members. A stream cannot wait: its
    samples are runs of members with one key, whose images are read too, and links are problems. Where nothing is an
    image or a label, the only sample is a nameless image, whose problem says what the tar holds instead.

    Args:
        others: counts the images of other kinds, which are not read, by suffix; changed in place.

    Raises:
        BrokenTar: it cannot be read to its end.
    """
    if stream:
        named = (entry for entry in _entries(file, stream=True) if entry.kind)
        for _, run in groupby(named, lambda entry: entry.key):
            yield from _grouped(run, others)
        return
    for sample in _grouped(_resolved(list(_entries(file, stream=False))), others):
        if (label := sample.label) and label.problem is None:
            file.seek(label.offset)
            sample = sample._replace(label=label._replace(content=file.read(label.size)))
        yield sample


def _grouped(entries: Iterable[Entry], others: Counter[str]) -> Iterator[Sample]:
    """The samples among some entries: the n-th image of a key goes with the n-th label of this key."""
    seen = Counter[tuple[str, str, str]]()
    groups: dict[tuple[str, int], dict[str, dict[str, Entry]]] = {}
    for entry in entries:
        is_other = entry.kind not in LIMITS and f".{entry.kind}".startswith(OTHERS)
        others.update([f".{entry.kind}"] if is_other else [])
        if entry.kind in LIMITS or is_other:
            name = entry.key, entry.middle, entry.kind
            groups.setdefault((entry.key, seen[name]), {}).setdefault(entry.middle, {})[entry.kind] = entry
            seen[name] += 1
    for parts in groups.values():
        found = {middle: _sample(kinds) for middle, kinds in parts.items()}
        plain = found.get("", Sample(None, None))
        lone = [middle for middle, sample in found.items() if middle and sample.image and not sample.label]
        if plain.label and not plain.image and lone:  # it is unclear which of them the label is of
            names = some([posixpath.basename(found[middle].name) for middle in lone])
            found[""] = plain._replace(
                missing=f"has a label but no image of its name, only {names}; rename one to match"
            )
            found = {middle: sample for middle, sample in found.items() if middle not in lone}
        for middle, sample in found.items():
            # With an image of its own, a sample may have more fields, such as a mask a.mask.png beside a.jpg.
            one, both = sample.image or sample.label, sample.image and sample.label
            if both or (one and not (middle and plain.image)):
                yield sample


def _sample(kinds: dict[str, Entry]) -> Sample:
    """The sample of members whose names differ in suffix; empty where all are images of other kinds."""
    sample = Sample(_first(kinds, IMAGES), _first(kinds, ("cls", "json")))
    unread = [posixpath.basename(entry.name) for kind, entry in kinds.items() if kind not in LIMITS]
    return sample._replace(missing=f"{sample.missing}; convert {some(unread)} to PNG") if unread else sample


def _first(kinds: dict[str, Entry], wanted: Iterable[str]) -> Entry | None:
    return next((kinds[kind] for kind in wanted if kind in kinds), None)


def _resolved(entries: list[Entry]) -> Iterator[Entry]:
    """The entries with links replaced by what they lead to."""
    files = {posixpath.normpath(entry.name): entry for entry in entries if not entry.link}
    links = {posixpath.normpath(entry.name): entry.link for entry in entries if entry.link}
    links = {name: target for name, target in links.items() if name not in files}
    for entry in entries:
        if entry.link:
            end, chain = entry.link, dict[str, None]()
            while end in links and end not in chain:
                chain[end] = None
                end = links[end]
            links.update(dict.fromkeys(chain, end))  # so that a long chain is walked once
            if target := files.get(end):
                entry = entry._replace(offset=target.offset, size=target.size, problem=target.problem)
            else:
                reason = "goes in a circle" if end in links else f"leads to {end!r}, which is not in this shard"
                entry = entry._replace(problem=f"is a link that {reason}")
        yield entry.bounded()


def _entries(file: IO[bytes], *, stream: bool) -> Iterator[Entry]:
    """The members of a tar except folders, and a nameless image with a problem where none is of use."""
    last, first, total, useful = "", "", 0, False
    length = 0 if stream else os.fstat(file.fileno()).st_size
    try:
        tar: Any  # whose stubs lack some attributes
        source: Any = _Ending(file) if stream else file
        with tarfile.open(fileobj=source, mode="r|*" if stream else "r:", tarinfo=_Header) as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # which would grow with the tar
                if tar.offset < info.offset_data:
                    raise tarfile.ReadError(f"{info.name!r} has a negative size")
                entry, end = _entry(info), min(info.offset_data + info.size, tar.offset)
                if stream and entry.link:
                    entry = entry._replace(problem="is a link, which cannot be followed in a stream")
                elif stream and (entry := entry.bounded()).problem is None and entry.kind in LIMITS:
                    entry = entry._replace(content=tar.extractfile(info).read())
                if (tar.fileobj.seek(end) if stream else length) < end:
                    raise tarfile.ReadError("unexpected end of data")
                if not info.isdir():
                    first, total, useful = first or info.name, total + 1, useful or entry.kind in LIMITS
                    yield entry
                last = info.name
            if tar.fileobj.read(tarfile.RECORDSIZE).strip(b"\0"):
                raise tarfile.ReadError("more follows the end mark: a damaged header, or several tars in one file")
    except Exception as error:  # damaged headers make tarfile raise nearly anything
        reason = "too many headers of one member" if isinstance(error, RecursionError) else str(error)
        raise BrokenTar(last, " ".join(reason.split()) or type(error).__name__) from error
    if not useful:
        named = f"none named {' '.join(f'*{suffix}' for suffix in SUFFIXES)}, the first {first!r}"
        reason = f"{counted(total, 'member')}, {named}" if total else "it is empty"
        yield Entry("", kind=IMAGES[0], problem=f"holds no images: {reason}")


def _entry(info: tarfile.TarInfo) -> Entry:
    folder, slash, base = info.name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    entry = Entry(info.name, offset=info.offset_data, size=info.size)
    parts = [part for part in info.name.split("/") if part not in (".", "..")]
    if dot and not any(hidden(part) or META.fullmatch(part) for part in parts):
        middle, dot, kind = suffix.rpartition(".")
        entry = entry._replace(key=f"{folder}{slash}{stem}", middle=middle + dot, kind=kind.lower())
    if info.issym() or info.islnk():
        beside = folder if info.issym() else ""  # a hard link gives the whole name
        return entry._replace(link=posixpath.normpath(posixpath.join(beside, info.linkname)))
    if info.issparse():
        return entry._replace(problem="is sparse; pack it without --sparse")
    return entry if info.isreg() else entry._replace(problem="is not a regular file")


class _Ending:
    """A stream that raises at its end, where tarfile would go on to ask for every block that a member claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.ends = file, 0

    def read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.ends += not content
        if self.ends > MOST_ENDS:
            raise tarfile.ReadError("unexpected end of data")
        return content


class _Header(tarfile.TarInfo):
    """A header that is read within bounds, and that does not count as the tar's end where it is damaged."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf.strip(b"\0"):  # else it is the end
                raise tarfile.ReadError("damaged header") from error
            raise
        if info.type in EXTENSIONS and not 0 <= info.size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header claims {info.size:,} bytes")
        return info

    def _proc_gnusparse_10(self, next: Any, pax_headers: object, tar: object) -> None:
        """Set an empty list of holes, where tarfile would read one of any length."""
        next.sparse = []
