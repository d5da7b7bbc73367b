"""Image folders: which files are images of which class.

A class-per-folder set is `root/<class>/**/*.png`; a flat folder or a single class folder is a set without classes.
"""

import os
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mvar.data.images.layout import check_classes, hidden, splits
from mvar.text import Names, clean, counted, some

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
# Beginnings of the suffixes of other images, and of files that look like some: a warning counts those.
OTHERS = (
    *SUFFIXES,
    *(".apng", ".avif", ".bmp", ".cr2", ".dib", ".dng", ".gif", ".heic", ".heif", ".ico", ".j2k", ".jfi", ".jif"),
    *(".jp2", ".jxl", ".mpo", ".nef", ".pbm", ".pgm", ".pjp", ".pnm", ".ppm", ".psd", ".svg", ".tga", ".tif"),
)
BROKEN = "broken link"


@dataclass(frozen=True)
class ImageFolder:
    """An index of image files in natural order, class by class.

    Attributes:
        root: the folder.
        paths: the image files; none has been opened yet.
        labels: one class index per file, all 0 where there are no classes.
        classes: class names in natural order, as `clean` returns them; empty for a flat folder or a single class.
    """

    root: Path
    paths: list[Path]
    labels: list[int]
    classes: list[str]

    @classmethod
    def scan(cls, folder: str | Path, field: str = "data", classes: Sequence[str] | None = None) -> "ImageFolder":
        """List the images of a folder; hidden files and folders, and those of file servers, are ignored.

        Folders whose names differ in spaces or in how accents are written are one class. Links to folders are followed,
        each folder being entered once. One warning counts the images of other kinds.

        Args:
            field: the option that named the folder, for messages.
            classes: names that the labels refer to, of the training set; a warning counts the images of other classes,
                which are left out. None takes them from the folders.

        Raises:
            ValueError: the folder is missing, holds no images, or images both beside and inside its class folders; has
                splits in place of classes (see `check_classes`), none of these classes, or a name of several of them.
        """
        root = Path(folder)
        named = f"{field} = {str(folder)!r}"
        loose, folders, empty = _listed(root, named)
        check_classes(folders, named, Names(classes or ()))
        if loose and folders:
            raise ValueError(
                f"{named}: holds {counted(len(loose), 'image')} beside {counted(len(folders), 'class folder')}; "
                "move them into a class folder or away"
            )
        if empty and folders and classes is None:
            warnings.warn(f"{named}: folders without images are no classes: {some(empty)}", stacklevel=2)
        class_of = {entry: _class_name(entry, named) for entry in folders}
        by_class: dict[str, list[Path]] = {name: [] for name in sorted(class_of.values(), key=natural)}
        for entry, paths in folders.items():
            by_class[class_of[entry]] += paths
        if classes:
            return cls(root, *_of_classes(by_class, classes, named))
        if len(by_class) < 2:
            paths = loose + [path for paths in by_class.values() for path in paths]
            return cls(root, paths, [0] * len(paths), [])
        if classes is not None:
            raise ValueError(
                f"{named}: has classes ({some(by_class)}), the training images have none; "
                "sort those into class folders too, or give a folder without"
            )
        doubtful = [entry.name for entry in folders if splits([entry.name])]
        if doubtful and not splits([root.name]):  # train/train holds railways
            warnings.warn(
                f"{named}: taken for classes, not for splits: {some(doubtful)}; move away those that are none",
                stacklevel=2,
            )
        return cls(root, *_of_classes(by_class, list(by_class), named))


def _listed(root: Path, named: str) -> tuple[list[Path], dict[Path, list[Path]], list[str]]:
    """The images in a folder itself, those of each folder inside, and the names of folders without any."""
    others = Counter[str]()
    with listing(named):
        if not root.is_dir():
            problem = "is a file" if root.exists() else "does not exist"
            raise ValueError(f"{named}: {problem}; give a folder of images or of class folders")
        inside, files = contents(root)
        loose = _images(files, others)
        folders = {entry: _images(files_under(entry), others) for entry in inside}
    empty = [entry.name for entry, paths in folders.items() if not paths]
    folders = {entry: paths for entry, paths in folders.items() if paths}
    if not loose and not folders:
        from mvar.data.tokens.cache import is_cache  # which imports torch: workers that read shards do without

        if is_cache(root):
            raise ValueError(
                f"{named}: is a token cache, which only train generator takes, as --data; "
                "give the folder of images that it was made from"
            )
        held = f" but {kinds(others)}" if others else ""
        raise ValueError(
            f"{named}: holds no images{held}; put {' '.join(SUFFIXES)} files into it or into class folders"
        )
    odd = Counter({kind: n for kind, n in others.items() if kind == BROKEN or kind.startswith(OTHERS)})
    if odd:
        warnings.warn(f"{named}: ignores {kinds(odd)}; convert what you need to PNG", stacklevel=3)
    return loose, folders, empty


@contextmanager
def listing(named: str) -> Iterator[None]:
    """Turn a folder that cannot be listed into one line that begins with `named`."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename!r} " if error.filename else ""
        raise ValueError(f"{named}: {where}cannot be listed ({error.strerror or error}); give one that can") from error


def contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders in a folder, in natural order, and its files, without hidden ones."""
    folders, files = list[Path](), list[Path]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if not hidden(entry.name):
                is_folder = os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()
                (folders if is_folder else files).append(Path(folder, entry.name))
    return sorted(folders, key=natural), files


def files_under(folder: Path) -> Iterator[Path]:
    """All files under a folder, except hidden ones and those in hidden folders.

    Links are followed. Each folder is entered once, and none that holds this one, so that circular links end.
    """
    place = Path(os.path.realpath(folder.parent))
    entered = {str(place), *map(str, place.parents)}
    for parent, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not hidden(name))
        yield from (Path(parent, name) for name in files if not hidden(name))


def is_image(path: Path) -> bool:
    """Whether a file has the suffix of an image."""
    return path.suffix.lower() in SUFFIXES


def natural(path: str | Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key: numbers by value, letters without case, then the exact name, so that no order depends on the disk."""
    text = unicodedata.normalize("NFC", str(path))
    parts = [
        (0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in re.split(r"([0-9]+)", text)
    ]
    return parts, str(path)


def bad_images(bad: Sequence[tuple[os.PathLike[str], str]], total: int, root: Path, most: int = 20) -> str:
    """Which images of a folder cannot be used and why; the first `most` by name."""
    lines = [f"{len(bad):,} of {counted(total, 'image')} in {str(root)!r} cannot be used:"]
    lines += [f"  {os.path.relpath(path, root)!r}: {reason}" for path, reason in bad[:most]]
    if len(bad) > most:
        lines.append(f"  ... and {len(bad) - most:,} more")
    return "\n".join(lines)


def _images(entries: Iterable[Path], others: Counter[str]) -> list[Path]:
    """The files that are images by their names, in natural order; `others` counts the rest by suffix."""
    found = []
    for path in entries:
        if is_image(path):
            found.append(path)
        else:
            others[BROKEN if path.is_symlink() and not path.exists() else path.suffix.lower()] += 1
    return sorted(found, key=natural)


def kinds(others: Counter[str]) -> str:
    """The number of files of each kind."""
    parts = [f"{n:,} {kind or 'without suffix'}" for kind, n in others.most_common()]
    total = others.total()
    return f"{counted(total, 'file')} of {'another kind' if total == 1 else 'other kinds'} ({some(parts)})"


def _of_classes(
    by_class: Mapping[str, list[Path]], classes: Sequence[str], named: str
) -> tuple[list[Path], list[int], list[str]]:
    """Images and labels of these classes, and the classes; a warning counts the images of others."""
    known, labels = Names(classes), dict[str, int]()
    for name in by_class:
        if len(places := known.find(name)) > 1:
            either = " or ".join(classes[place] for place in places)
            raise ValueError(f"{named}: the class {name} may be {either} of the training images; rename the folder")
        if places:
            labels[name] = places[0]
    if not labels:
        raise ValueError(
            f"{named}: holds {some(by_class) or 'images without classes'}, the training images are of {some(classes)}; "
            "give folders of these names"
        )
    if unknown := [name for name in by_class if name not in labels]:
        left_out = counted(sum(len(by_class[name]) for name in unknown), "image")
        warnings.warn(
            f"{named}: leaves out {left_out} of classes that the training images lack: {some(unknown)}", stacklevel=3
        )
    chosen = sorted(labels, key=labels.__getitem__)
    return (
        [path for name in chosen for path in by_class[name]],
        [labels[name] for name in chosen for _ in by_class[name]],
        list(classes),
    )


def _class_name(folder: Path, named: str) -> str:
    """The folder's name as text, in which bytes that are not UTF-8 are escaped."""
    name = clean(os.fsencode(folder.name).decode("utf-8", errors="backslashreplace"))
    if not name:
        raise ValueError(f"{named}: the folder {folder.name!r} has nothing but spaces for a name; rename it")
    return name


def _raise(error: OSError) -> None:
    raise error
