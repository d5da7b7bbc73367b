"""Images for an evaluation: as many of every class, drawn by any number of processes, interrupted or not.

What decides the images is written first (see `mvar.sampling.report`); a run that resumes must have the same. Each image
is then a file of its own, checked before it is counted; an .npz is put together from a hidden folder of them beside it.
See `mvar.job` for how processes divide the work.
"""

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from mvar import __version__
from mvar.checkpoint.bundle import CONFIG, GENERATOR, TOKENIZER
from mvar.data.images.decoding import decode
from mvar.data.images.folders import ImageFolder
from mvar.data.workers import in_threads
from mvar.files import file_sha256
from mvar.job import Job, check_same
from mvar.progress import track
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import SampleOutput
from mvar.sampling.export import image_file, save_npz, save_pngs
from mvar.sampling.labels import places
from mvar.sampling.report import PROTOCOL, beside, labels_of, read_protocol, write_beside
from mvar.text import some

FREE = ("model",)  # a name: the weights are known by their hash


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What decides the images: they are numbered class by class, and image i takes the noise of index i.

    Attributes:
        protocol: its name.
        classes: names, in the model's order; "no class" alone where it has none.
        counts: images of each class.
        image_shape: [height, width].
        model: its name.
        sha256: of each of the model's files that decide what it draws.
        seed: of the run.
        sampling: guidance and filters.
        dtype: of the weights in use.
        batch_size: images drawn at once: matrix products of another batch size round differently.
    """

    protocol: str
    classes: list[str]
    counts: list[int]
    image_shape: list[int]
    model: str
    sha256: dict[str, str]
    seed: int
    sampling: SamplingSettings
    dtype: str
    batch_size: int

    @property
    def count(self) -> int:
        """How many images there are."""
        return sum(self.counts)

    @cached_property
    def labels(self) -> list[int]:
        """The class of each image."""
        return labels_of(self.counts)

    def file(self, i: int) -> str:
        """The name of image i's file."""
        return image_file(self.classes[self.labels[i]], i)

    def written(self) -> dict[str, Any]:
        """What protocol.json holds: all of this in one level, and the version of mvar."""
        own = {name: value for name, value in asdict(self).items() if name != "sampling"}
        return {**own, **asdict(self.sampling), "mvar": __version__}


def counts_like(folder: str, classes: Sequence[str], field: str) -> list[int]:
    """How many images of each class a folder of class folders holds; a warning names classes that it lacks.

    Raises:
        ValueError: no folder of images, or other classes (compared by `places`).
    """
    found = ImageFolder.scan(folder, field)
    held = places(classes, found.classes)
    lacks = [name for name, place in zip(classes, held, strict=True) if place < 0]
    if not found.classes or sorted(place for place in held if place >= 0) != list(range(len(found.classes))):
        raise ValueError(
            f"{field} = {folder!r}: holds {some(found.classes) or 'no classes'}, the model draws {some(classes)}; "
            "give a folder with the model's classes"
        )
    if lacks:
        warnings.warn(f"{field} = {folder!r}: has none of {some(lacks)}, so that none is drawn", stacklevel=2)
    count = Counter(found.labels)
    return [count[place] for place in held]


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of a bundle's config and weights, by file; a tokenizer alone has no generator's."""
    return {name: file_sha256(folder / name) for name in (CONFIG, TOKENIZER, GENERATOR) if (folder / name).exists()}


def begin(protocol: Protocol, out_dir: str | None, npz: str | None) -> Path | None:
    """Write with which settings images are drawn, into a folder, an .npz or both.

    Returns:
        The folder to draw into; None where the .npz is all that is asked for, and exists.

    Raises:
        ValueError: a target is in use, or was started with other settings, a line for each; nothing is written then.
    """
    targets = {field: Path(path) for field, path in (("out_dir", out_dir), ("npz", npz)) if path is not None}
    for field, path in targets.items():
        used = _in_use(path)  # looked at first, as another process writes its settings before anything else
        before = read_protocol(path)
        if before is not None:
            check_same(before, protocol.written(), field, path, FREE)
        elif used:
            why = f"already exists, and no {PROTOCOL} says how it was made"
            raise ValueError(f"{field} = {str(path)!r}: {why}; give a new name")
    if out_dir is None and npz is not None and Path(npz).exists():
        return None
    for path in targets.values():
        if not beside(path, PROTOCOL).exists():
            write_beside(path, PROTOCOL, protocol.written())
    folder = Path(out_dir) if out_dir is not None else _parts(targets["npz"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def draw_missing(
    protocol: Protocol,
    folder: Path,
    npz: str | None,
    draw: Callable[[list[int], range], SampleOutput],
    rank: int = 0,
    ranks: int = 1,
) -> int:
    """Draw this process's images that are missing, by `draw(labels, numbers)`; return how many were written.

    Processes take batches in turn. A batch in which some images are missing is drawn completely, as the first time. An
    .npz that exists ends the drawing into its hidden folder: another process has written it.
    """
    written = 0

    def make(index: range) -> None:
        nonlocal written
        drawn = draw([protocol.labels[i] for i in index], index)
        missing = _missing(protocol, folder, index)
        pixels = drawn.pixels[[i - index.start for i in missing]]
        written += len(save_pngs(SampleOutput(pixels, None), folder, [protocol.file(i) for i in missing]))

    _job(protocol, folder, npz).make_missing(make, rank, ranks, progress=rank == 0)
    if _is_archived(folder, npz):
        shutil.rmtree(folder, ignore_errors=True)
    return written


def finish(protocol: Protocol, folder: Path, npz: str | None, ranks: int = 1) -> None:
    """Wait for the images of other processes; write the .npz if one is asked for; delete what is no longer needed.

    Raises:
        TimeoutError: other processes have stopped.
        ValueError: an image that was damaged meanwhile, by its path.
    """
    job = _job(protocol, folder, npz)
    if ranks > 1:
        job.wait()

    def images(order: Sequence[int]) -> Iterator[np.ndarray]:
        return track(in_threads(partial(_read, protocol, folder), order), len(order), "joining images")

    if npz is not None and not Path(npz).exists():
        save_npz(images, protocol.image_shape, protocol.labels, npz, protocol.seed)
    job.clean()
    if npz is not None:
        shutil.rmtree(_parts(Path(npz)), ignore_errors=True)


def _job(protocol: Protocol, folder: Path, npz: str | None) -> Job[range]:
    size, count = protocol.batch_size, protocol.count
    return Job(
        folder=folder,
        pieces=[range(start, min(start + size, count)) for start in range(0, count, size)],
        noun="batches",
        name=lambda index: f"images {index.start} to {index.stop - 1}",
        is_complete=lambda index: _is_archived(folder, npz) or not _missing(protocol, folder, index),
    )


def _missing(protocol: Protocol, folder: Path, index: Sequence[int]) -> list[int]:
    """Those images whose file is missing or damaged."""

    def damaged(i: int) -> bool:
        try:
            _read(protocol, folder, i)
        except ValueError:
            return True
        return False

    return [i for i, gone in zip(index, in_threads(damaged, index), strict=True) if gone]


def _read(protocol: Protocol, folder: Path, i: int) -> np.ndarray:
    """Image i, uint8 (H, W, 3).

    Raises:
        ValueError: one line: there is none, or it is damaged, or a loss of power left it empty.
    """
    path = folder / protocol.file(i)
    try:
        pixels_HW3 = np.asarray(decode(path))
        if pixels_HW3.shape != (*protocol.image_shape, 3):
            raise ValueError("has another size")
    except ValueError as error:
        raise ValueError(f"{path}: {error}; run the same command again, which draws it again") from error
    return pixels_HW3


def _parts(npz: Path) -> Path:
    return npz.with_name(f".{npz.name}.parts")


def _is_archived(folder: Path, npz: str | None) -> bool:
    """Whether the folder is the hidden one of an .npz that exists."""
    return npz is not None and folder == _parts(Path(npz)) and Path(npz).exists()


def _in_use(path: Path) -> bool:
    if path.is_dir():
        return any(entry.name[0] != "." for entry in path.iterdir())
    return path.exists() or _parts(path).exists()
