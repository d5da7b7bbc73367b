"""Images for an evaluation: as many of every class, drawn by any number of processes, interrupted or not.

What decides the images is written first (see `mvar.sampling.report`); a run that resumes must have the same. Each image
is then a file of its own, checked before it is counted; an .npz is put together from a hidden folder of them beside it.
See `mvar.job` for how processes divide the work.
"""

import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mvar.checkpoint.bundle import CONFIG, GENERATOR, TOKENIZER
from mvar.data.images.decoding import decode
from mvar.data.images.folders import ImageFolder
from mvar.data.workers import in_threads
from mvar.files import file_sha256
from mvar.job import Job, check_same
from mvar.ops.noise import CPU
from mvar.progress import track
from mvar.sampling.engine import SampleOutput, batches
from mvar.sampling.export import save_npz, save_pngs, writing
from mvar.sampling.labels import places
from mvar.sampling.report import PROTOCOL, Samples, beside, read_protocol, write_beside
from mvar.text import some

FREE = ("model",)  # a name: the weights are known by their hash


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


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """Images on their way into a folder, an .npz or both; image i takes the noise of index i.

    Attributes:
        samples: all of them, with facts that decide them; of these, it reads `image_shape` [height, width], `seed`, and
            `batch_size`, images drawn at once: matrix products of another batch size round differently.
        out_dir, npz: where they go; None where they do not.
    """

    samples: Samples
    out_dir: Path | None
    npz: Path | None

    @property
    def folder(self) -> Path:
        """Where single images are: a hidden folder beside the .npz where they are not asked for."""
        return self.out_dir or _parts(self.npz or Path())

    @property
    def archived(self) -> bool:
        """Whether the .npz is all that is asked for, and exists."""
        return self.out_dir is None and self.npz is not None and self.npz.exists()

    def begin(self) -> None:
        """Write with which settings images are drawn, to every target.

        Raises:
            ValueError: a target is in use, or was started with other settings; nothing is written then.
        """
        targets = {name: path for name, path in (("out_dir", self.out_dir), ("npz", self.npz)) if path is not None}
        for field, path in targets.items():
            used = _in_use(path)  # looked at first, as another process writes its settings before anything else
            if before := read_protocol(path):
                check_same(before.facts, self.samples.facts, field, path, FREE)
            elif used:
                why = f"already exists, and no {PROTOCOL} says how it was made"
                raise ValueError(f"{field} = {str(path)!r}: {why}; give a new name")
        for path in targets.values():
            if not beside(path, PROTOCOL).exists():
                write_beside(path, PROTOCOL, self.samples.facts)
        if not self.archived:
            self.folder.mkdir(parents=True, exist_ok=True)

    def draw(
        self,
        draw: Callable[[list[int], range], SampleOutput],
        rank: int = 0,
        ranks: int = 1,
        device: torch.device = CPU,
    ) -> int:
        """Draw this process's images that are missing, by `draw(labels, numbers)` on this device.

        Returns how many were written.

        Processes take batches in turn. A batch in which some images are missing is drawn completely, as the first time.
        An .npz that exists ends the drawing into its hidden folder: another process has written it.
        """
        written = 0

        def save(drawn: SampleOutput, index: range) -> None:
            nonlocal written
            missing = self._missing(index)
            pixels = drawn.pixels[[i - index.start for i in missing]]
            save_pngs(SampleOutput(pixels, None), self.folder, [self.samples.files[i] for i in missing])
            written += len(missing)

        with writing(device) as write:

            def make(index: range) -> None:
                write(partial(save, draw([self.samples.labels[i] for i in index], index), index))

            job = self._job()
            own = range(rank, len(job.pieces), ranks)
            job.make_missing(make, own, len(own) if rank == 0 else None)
        if self.archived:
            shutil.rmtree(self.folder, ignore_errors=True)
        return written

    def finish(self, ranks: int = 1) -> None:
        """Wait for the images of other processes; write the .npz if one is asked for; delete what is no longer needed.

        Raises:
            TimeoutError: other processes have stopped.
            ValueError: an image that was damaged meanwhile, by its path.
        """
        job = self._job()
        if ranks > 1:
            job.wait()

        def images(order: Sequence[int]) -> Iterator[np.ndarray]:
            return track(in_threads(self._read, order), len(order), "joining images")

        if self.npz is not None and not self.npz.exists():
            facts = self.samples.facts
            save_npz(images, facts["image_shape"], self.samples.labels, self.npz, facts["seed"])
        job.clean()
        if self.npz is not None:
            shutil.rmtree(_parts(self.npz), ignore_errors=True)

    def _job(self) -> Job[range]:
        every = range(len(self.samples.labels))
        return Job(
            folder=self.folder,
            pieces=[every[part] for part in batches(len(every), self.samples.facts["batch_size"])],
            noun="batches",
            name=lambda index: f"images {index.start} to {index.stop - 1}",
            is_complete=lambda index: self.archived or not self._missing(index),
        )

    def _missing(self, index: Sequence[int]) -> list[int]:
        """Those images whose file is missing or damaged."""

        def damaged(i: int) -> bool:
            try:
                self._read(i)
            except ValueError:
                return True
            return False

        return [i for i, gone in zip(index, in_threads(damaged, index), strict=True) if gone]

    def _read(self, i: int) -> np.ndarray:
        """Image i, uint8 (H, W, 3); ValueError with its path where there is none, or it is damaged or empty."""
        path = self.folder / self.samples.files[i]
        try:
            pixels_HW3 = np.asarray(decode(path))
            if pixels_HW3.shape != (*self.samples.facts["image_shape"], 3):
                raise ValueError("has another size")
        except ValueError as error:
            raise ValueError(f"{path}: {error}; run the same command again, which draws it again") from error
        return pixels_HW3


def _parts(npz: Path) -> Path:
    return npz.with_name(f".{npz.name}.parts")


def _in_use(path: Path) -> bool:
    if path.is_dir():
        return any(entry.name[0] != "." for entry in path.iterdir())
    return path.exists() or _parts(path).exists()
