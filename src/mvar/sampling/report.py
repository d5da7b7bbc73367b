"""The file beside drawn images that lists them, with their classes and the settings that decided them.

    samples.json      of `mvar sample` and `mvar edit`: settings, and a row for each image; replaced by the next run
    protocol.json     of `mvar sample-set`: settings, classes and how many images of each; a run of other
                      settings is refused

A folder of images has a file of this name, NAME.npz has NAME.samples.json or NAME.protocol.json beside it. Readers
check the images against it: a set that is incomplete, or holds other images, is refused.
"""

import json
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mvar import __version__
from mvar.data.images.folders import SUFFIXES, natural
from mvar.files import read_bounded, write_text
from mvar.sampling.engine import SampleOutput
from mvar.sampling.export import LARGEST_SET, image_file, save_npz, save_pngs
from mvar.settings import is_integer
from mvar.text import counted

REPORT, PROTOCOL = "samples.json", "protocol.json"
MOST_WRITTEN = 1000 * LARGEST_SET  # bytes of such a file: an image has some 150


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A set of images, numbered from 0.

    Attributes:
        files: their names in a folder.
        labels: their class indices; the null class is the number of classes.
        classes: names of their classes, by index.
        facts: what else decides them, such as model, seed and settings.
        details: further fields of each image's row; empty for none.
        origin: the file that says all this.
    """

    files: list[str]
    labels: list[int]
    classes: dict[int, str]
    facts: dict[str, Any]
    details: list[dict[str, Any]] = field(default_factory=list)
    origin: str = REPORT

    @classmethod
    def of(
        cls, labels: list[int], class_name: Callable[[int], str], facts: dict[str, Any], stem: str | None = None
    ) -> "Samples":
        """Images of these labels; their files are named by class (or by `stem` instead) and number."""
        classes = {label: class_name(label) for label in dict.fromkeys(labels)}
        files = [image_file(stem or classes[label], i) for i, label in enumerate(labels)]
        return cls(files=files, labels=labels, classes=classes, facts=facts)

    @classmethod
    def of_protocol(cls, facts: dict[str, Any], origin: str = PROTOCOL) -> "Samples":
        """The images of a protocol, class by class, from all that it says: `classes`, their `counts`, and more."""
        classes, counts = facts["classes"], facts["counts"]
        labels = [label for label, count in enumerate(counts) for _ in range(count)]
        return replace(cls.of(labels, classes.__getitem__, facts), origin=origin)

    def save(self, drawn: SampleOutput, folder: str, first: int) -> None:
        """Write the images from number `first` on into a folder.

        Before the first, an earlier run's images are deleted, then the report of those to come is written. In this
        order, an interruption leaves no image that the report there does not list, and never a mix of two runs.
        """
        if first == 0:
            root = Path(folder)
            earlier, _ = _apart(root, _read_report(root))
            if earlier:
                print(f"{root}: replacing {counted(len(earlier), 'image')} of an earlier run", file=sys.stderr)
            unfinished = [path.name for path in root.glob(".*.partial.png")]  # of a process that was killed
            for file in earlier + unfinished:
                (root / file).unlink(missing_ok=True)
            self.write(root)
        save_pngs(drawn, folder, self.files[first : first + len(drawn.pixels)])

    def save_npz(self, pixels_NHW3: np.ndarray, npz: str, seed: int) -> None:
        """Write all images as an .npz in an order mixed by the seed, and the report beside it.

        An interruption leaves the earlier .npz and its report, or at worst an .npz without a report; never one beside
        the report of other images.
        """

        def images(order: Sequence[int]) -> Iterator[np.ndarray]:
            yield from (pixels_NHW3[i] for i in order)  # one by one: all in another order would be a second array
            beside(npz, REPORT).unlink(missing_ok=True)  # of the .npz that is about to be replaced

        save_npz(images, pixels_NHW3.shape[1:3], self.labels, npz, seed)
        self.write(npz)

    def write(self, images: str | Path) -> None:
        """Write samples.json beside the images in a folder or an .npz."""
        rows = [
            {"number": i, "file": file, "class": self.classes[label], "label": label}
            for i, (file, label) in enumerate(zip(self.files, self.labels, strict=True))
        ]
        for row, more in zip(rows, self.details, strict=False):
            row.update(more)
        write_beside(images, REPORT, {**self.facts, "mvar": __version__, "images": rows})

    def numbers(self, files: Sequence[str], named: str) -> list[int]:
        """The number of each image of a folder, given by its path in the folder.

        Raises:
            ValueError: one line: an image is missing, or does not belong to this set.
        """
        known = {_same(file): number for number, file in enumerate(self.files)}
        numbers = [known.get(_same(file), -1) for file in files]
        if others := [file for file, number in zip(files, numbers, strict=True) if number < 0]:
            raise ValueError(
                f"{named}: holds {counted(len(others), 'image')} that its {self.origin} does not list, "
                f"first {others[0]!r}; remove what does not belong there, or {self.origin}"
            )
        if missing := sorted({*known.values()} - {*numbers}):
            raise ValueError(
                f"{named}: lacks {counted(len(missing), 'image')} of the {len(self.files)} that its {self.origin} "
                f"lists, first {self.files[missing[0]]!r}; draw them by the same command, or remove {self.origin}"
            )
        return numbers


def read_samples(images: str | Path) -> Samples | None:
    """What lies beside the images in a folder or an .npz; None where nothing does.

    Raises:
        ValueError: one line: the file is damaged, or another program's.
    """
    return read_protocol(images) or _read_report(images)


def read_protocol(images: str | Path) -> Samples | None:
    """The images that protocol.json lists; None where there is none. Raises as `read_samples`."""
    found = _read_beside(images, PROTOCOL, _is_protocol)
    return None if found is None else Samples.of_protocol(found, beside(images, PROTOCOL).name)


def _read_report(images: str | Path) -> Samples | None:
    found = _read_beside(images, REPORT, _is_report)
    if found is None:
        return None
    rows = found.pop("images")
    return Samples(
        files=[row["file"] for row in rows],
        labels=[row["label"] for row in rows],
        classes={row["label"]: row["class"] for row in rows},
        facts=found,
        origin=beside(images, REPORT).name,
    )


def target_problems(out: str | None, out_dir: str | None, npz: str | None) -> Iterator[str]:
    """Why a run without a protocol must not write there, a line each; nothing is changed yet.

    A sheet must not lie among single images, and a folder must not hold images that an earlier run did not write.
    """
    for name, path in (("out_dir", out_dir), ("npz", npz)):
        if path is None:
            continue
        if (settings := beside(path, PROTOCOL)).exists():
            yield f"{name} = {path!r}: {settings.name} there belongs to mvar sample-set; give a new name"
            continue
        try:
            before = _read_report(path)
        except ValueError as error:
            yield f"{name} = {path!r}: {error}"
            continue
        if name == "out_dir" and (others := _apart(Path(path), before)[1]):
            yield (
                f"out_dir = {path!r}: holds {counted(len(others), 'image')} that no {REPORT} lists, "
                f"first {others[0]!r}; give a new folder, or remove them"
            )
    if out is not None and out_dir is not None and Path(out).parent.resolve() == Path(out_dir).resolve():
        yield f"out = {out!r}: would lie among the images of out_dir; give another folder"


# --- the files ---


def beside(images: str | Path, name: str) -> Path:
    """Where a file of this name about some images lies: in their folder, or as a.NAME beside a.npz."""
    images = Path(images)
    return images.with_suffix(f".{name}") if images.suffix.lower() == ".npz" else images / name


def write_beside(images: str | Path, name: str, content: dict[str, Any]) -> None:
    """Write a JSON file about some images, see `beside`."""
    write_text(beside(images, name), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _read_beside(images: str | Path, name: str, is_ours: Callable[[Any], bool]) -> dict[str, Any] | None:
    path = beside(images, name)
    try:
        path.lstat()  # distinguishes a missing file from one that is refused
        found: dict[str, Any] = json.loads(read_bounded(path, MOST_WRITTEN))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); remove it if the images are not mvar's") from error
    with suppress(KeyError, TypeError):  # of another program's layout
        if is_ours(found):
            return found
    raise ValueError(f"{path}: was not written by mvar; remove it if the images are not mvar's")


def _is_protocol(found: Any) -> bool:
    classes, counts = found["classes"], found["counts"]
    known = isinstance(classes, list) and all(isinstance(name, str) for name in classes) and "protocol" in found
    matched = len(classes) == len(counts) and all(is_integer(n) and n >= 0 for n in counts)
    return known and matched and 1 <= sum(counts) <= LARGEST_SET


def _is_report(found: Any) -> bool:
    return "mvar" in found and all(_is_row(row, i) for i, row in enumerate(found["images"]))


def _is_row(row: Any, number: int) -> bool:
    file = row["file"]
    # Files are deleted by these names: only images in the folder itself.
    inside = isinstance(file, str) and Path(file).name == file and Path(file).suffix == ".png"
    return inside and row["number"] == number and isinstance(row["class"], str) and is_integer(row["label"])


def _apart(folder: Path, report: Samples | None) -> tuple[list[str], list[str]]:
    """The images directly in a folder that a report lists, and the others."""
    listed = set() if report is None else {_same(file) for file in report.files}
    images = [path for path in folder.glob("[!.]*") if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    names = sorted((path.name for path in images), key=natural)
    return [name for name in names if _same(name) in listed], [name for name in names if _same(name) not in listed]


def _same(file: str) -> str:
    """A file's name as names are compared: some file systems return another form of the same characters."""
    return unicodedata.normalize("NFC", file)
