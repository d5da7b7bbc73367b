"""What `mvar sample` and `mvar edit` leave beside their images: which there are, of which classes, and what drew them.

A folder has samples.json, NAME.npz has NAME.samples.json; where a protocol decided the images, its own file says the
same. Readers check images against this file: a set that was not finished, or holds other images, is refused.
"""

import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mvar import __version__
from mvar.data.images.folders import SUFFIXES, natural
from mvar.files import writable_folder
from mvar.sampling.engine import SampleOutput
from mvar.sampling.export import beside, image_file, read_beside, save_npz, save_pngs, write_beside
from mvar.sampling.protocol import SETTINGS, labels_of, read_protocol
from mvar.settings import is_integer
from mvar.text import counted

REPORT = "samples.json"


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A set of images, known by their numbers from 0.

    Attributes:
        files: their names in a folder.
        labels: their class indices; that of no class is the number of classes.
        classes: names of the classes that they are of, by index.
        facts: what decides them besides, such as model, seed and settings.
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
        """Images of these labels, their files named by class and number, or by another word in the class's place."""
        classes = {label: class_name(label) for label in dict.fromkeys(labels)}
        files = [image_file(stem or classes[label], i) for i, label in enumerate(labels)]
        return cls(files=files, labels=labels, classes=classes, facts=facts)

    def save(self, drawn: SampleOutput, folder: str, first: int) -> None:
        """Write the images from number `first` on into a folder; the first of all make room for the set."""
        if first == 0:
            self._begin(writable_folder(folder, "out_dir"))
        save_pngs(drawn, folder, self.files[first : first + len(drawn.pixels)])

    def _begin(self, root: Path) -> None:
        """Remove the images of an earlier run, then say which are to come.

        In this order, an interruption leaves no image that the report there does not list, and none of two runs.
        """
        earlier, _ = _apart(root, _read_report(root))
        if earlier:
            print(f"{root}: replacing {counted(len(earlier), 'image')} of an earlier run", file=sys.stderr)
        for file in earlier:
            (root / file).unlink(missing_ok=True)
        for unfinished in root.glob(".*.partial.png"):  # of a process that was killed
            unfinished.unlink()
        self.write(root)

    def save_npz(self, pixels_NHW3: np.ndarray, npz: str, seed: int) -> None:
        """Write all images as an .npz, and the report beside it, mixed by the seed; see the function of this name.

        An interruption leaves the earlier .npz and its report, or at worst one without a report; never one beside the
        report of others.
        """

        def images(order: Sequence[int]) -> Iterator[np.ndarray]:
            yield from (pixels_NHW3[i] for i in order)  # one by one: all in another order would be a second array
            beside(npz, REPORT).unlink(missing_ok=True)  # of the .npz that is about to be replaced

        save_npz(images, pixels_NHW3.shape[1:3], self.labels, npz, seed)
        self.write(npz)

    def write(self, images: str | Path) -> None:
        """Write the report beside the images in a folder or an .npz."""
        rows: list[dict[str, Any]] = [
            {"number": i, "file": file, "class": self.classes[label], "label": label}
            for i, (file, label) in enumerate(zip(self.files, self.labels, strict=True))
        ]
        for row, more in zip(rows, self.details, strict=False):
            row.update(more)
        write_beside(images, REPORT, {**self.facts, "mvar": __version__, "images": rows})

    def numbers(self, files: Sequence[str], named: str) -> list[int]:
        """The number of each image of a folder.

        Args:
            files: the images, by their paths in the folder.
            named: the folder as messages have it.

        Raises:
            ValueError: one line: an image is missing, or is not of this set.
        """
        known = {_same(file): number for number, file in enumerate(self.files)}
        held = {_same(file) for file in files}
        if others := [file for file in files if _same(file) not in known]:
            raise ValueError(
                f"{named}: holds {counted(len(others), 'image')} that its {self.origin} does not list, "
                f"first {others[0]!r}; remove what does not belong there, or {self.origin}"
            )
        if missing := [file for file in self.files if _same(file) not in held]:
            raise ValueError(
                f"{named}: lacks {counted(len(missing), 'image')} of the {len(self.files)} that its {self.origin} "
                f"lists, first {missing[0]!r}; draw them by the same command, or remove {self.origin}"
            )
        return [known[_same(file)] for file in files]


def read_samples(images: str | Path) -> Samples | None:
    """What lies beside the images in a folder or an .npz; None where nothing does.

    Raises:
        ValueError: one line: the file is damaged, or another program's.
    """
    protocol = read_protocol(images)
    if protocol is None:
        return _read_report(images)
    samples = Samples.of(labels_of(protocol["counts"]), protocol["classes"].__getitem__, protocol)
    return replace(samples, origin=beside(images, SETTINGS).name)


def target_problems(out: str | None, out_dir: str | None, npz: str | None) -> Iterator[str]:
    """Why a run without a protocol should not write there, a line each; nothing is changed yet.

    Args:
        out: a sheet, which must not lie among single images.
        out_dir: may hold an earlier run's images, which this one's replace, but no others.
        npz: may be there, with its report or without.
    """
    for name, path in (("out_dir", out_dir), ("npz", npz)):
        if path is None:
            continue
        if (settings := beside(path, SETTINGS)).exists():
            yield f"{name} = {path!r}: is a protocol's, by {settings.name}; give a new name"
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


def _read_report(images: str | Path) -> Samples | None:
    found = read_beside(images, REPORT, _is_report)
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


def _is_report(found: Any) -> bool:
    if not (isinstance(found, dict) and "mvar" in found and isinstance(found.get("images"), list)):
        return False
    return all(isinstance(row, dict) and _is_row(row, i) for i, row in enumerate(found["images"]))


def _is_row(row: dict[str, Any], number: int) -> bool:
    file, label = row.get("file"), row.get("label", -1)
    # Files are removed by these names: of images in the folder itself alone.
    inside = isinstance(file, str) and Path(file).name == file and Path(file).suffix == ".png"
    return inside and row.get("number") == number and isinstance(row.get("class"), str) and is_integer(label)


def _apart(folder: Path, report: Samples | None) -> tuple[list[str], list[str]]:
    """The images in a folder itself that a report lists, and the others.

    Those in folders in it are no danger: together with others, both are refused.
    """
    if not folder.is_dir():
        return [], []
    known = set() if report is None else {_same(file) for file in report.files}
    images = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
    names = sorted((path.name for path in images if not path.is_dir()), key=natural)
    return [name for name in names if _same(name) in known], [name for name in names if _same(name) not in known]


def _same(file: str) -> str:
    """A file's name as names are compared: some file systems give back another form of the same characters."""
    return unicodedata.normalize("NFC", file)
