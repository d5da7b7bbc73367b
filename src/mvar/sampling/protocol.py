"""Samples for an evaluation: a number of every class, drawn by any number of processes, interrupted or not.

What decides the images is written first, as protocol.json in their folder or NAME.protocol.json beside NAME.npz; who
goes on must have the same. Every image is then a file of its own, looked at before it is counted on; an .npz is
joined from a hidden folder of them beside it. Processes talk through the folder alone, and rank 0 waits for the others.
"""

import json
import os
import shutil
import sys
import time
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
from mvar.progress import track
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import SampleOutput
from mvar.sampling.export import (
    LARGEST_SET,
    beside,
    image_file,
    read_beside,
    save_npz,
    save_pngs,
    write_beside,
)
from mvar.sampling.labels import places
from mvar.settings import is_integer
from mvar.text import some

PER_CLASS = {"imagenet-50k": 50}  # of each protocol, unless another number is asked for
SETTINGS = "protocol.json"
FREE = {"model"}  # a name: the weights are known by their hash
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 6 * 60 * 60  # how long rank 0 waits while nobody writes anything: a batch of a large model is slow
TELL_SECONDS = 5 * 60  # between two lines that say so

# Draws images of these labels with these numbers.
Draw = Callable[[list[int], range], SampleOutput]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What decides the images: they are numbered class by class, and image i has the number i for its noise.

    Attributes:
        protocol: its name.
        classes: names, in the model's order; "no class" alone where it has none.
        counts: images of each class.
        image_shape: [height, width].
        model: its name.
        sha256: of each file of the model's that decides what it draws.
        seed: of the run.
        sampling: guidance and filters.
        dtype: that the weights are used in.
        batch_size: images drawn at once, as products round differently in batches of another size.
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


def labels_of(counts: Sequence[int]) -> list[int]:
    """The class of each image, class by class, by how many each has."""
    return [label for label, count in enumerate(counts) for _ in range(count)]


def counts_like(folder: str, classes: Sequence[str], field: str) -> list[int]:
    """How many images of each class a folder holds; none of a class that it lacks, which a warning names.

    Args:
        classes: that it may hold, by the names of its folders (see `places`).
        field: the option that named the folder, for messages.

    Raises:
        ValueError: no folder of images, or other classes.
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


def read_protocol(path: str | Path) -> dict[str, Any] | None:
    """What `Protocol.written` gave for the samples in a folder or an .npz; None where there is nothing of the kind.

    Raises:
        ValueError: one line: the file is damaged, or holds something else.
    """
    return read_beside(path, SETTINGS, _is_protocol)


def _is_protocol(found: Any) -> bool:
    if not (isinstance(found, dict) and "protocol" in found):
        return False
    classes, counts = found.get("classes"), found.get("counts")
    if not (isinstance(classes, list) and isinstance(counts, list) and len(classes) == len(counts)):
        return False
    known = all(isinstance(name, str) for name in classes) and all(is_integer(n) and n >= 0 for n in counts)
    return known and 1 <= sum(counts) <= LARGEST_SET


def begin(protocol: Protocol, out_dir: str | None, npz: str | None) -> Path | None:
    """Say with which settings images are drawn, into a folder, an .npz or both.

    Returns:
        The folder to draw into; None where the .npz is all that is asked for, and is there.

    Raises:
        ValueError: one line: a target is in use, or was begun with other settings; nothing is written then.
    """
    targets = {field: Path(path) for field, path in (("out_dir", out_dir), ("npz", npz)) if path is not None}
    for field, path in targets.items():
        named = f"{field} = {str(path)!r}"
        used = _in_use(path)  # looked at first, as another process writes its settings before anything else
        before = read_protocol(path)
        if before is None and used:
            raise ValueError(f"{named}: already exists, and no {SETTINGS} says how it was made; give a new name")
        if before is not None and (other := _differences(before, protocol)):
            raise ValueError(f"{named}: was begun with {', '.join(other)}; give the same settings, or a new name")
    if out_dir is None and npz is not None and Path(npz).exists():
        return None
    for path in targets.values():
        if not beside(path, SETTINGS).exists():
            write_beside(path, SETTINGS, protocol.written())
    folder = Path(out_dir) if out_dir is not None else _parts(targets["npz"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def draw_missing(protocol: Protocol, folder: Path, npz: str | None, draw: Draw, rank: int = 0, ranks: int = 1) -> int:
    """Draw this process's share of the images that are not there yet.

    Processes take batches in turn. A batch of which some images are there is drawn whole, as it was the first time.

    Args:
        folder, npz: that `begin` gave and was given. An .npz that is there already ends the drawing into its hidden
            folder: another process has joined it.
        rank, ranks: which process of how many this is.

    Returns:
        How many images were written.
    """
    size = protocol.batch_size
    starts = range(rank * size, protocol.count, ranks * size)
    written = 0
    for start in track(starts, len(starts), "batches") if rank == 0 else starts:
        index = range(start, min(start + size, protocol.count))
        missing = _missing(protocol, folder, index)
        if missing and npz is not None and folder == _parts(Path(npz)) and Path(npz).exists():
            shutil.rmtree(folder, ignore_errors=True)
            break
        if missing:
            drawn = draw([protocol.labels[i] for i in index], index)
            pixels = drawn.pixels[[i - start for i in missing]]
            written += len(save_pngs(SampleOutput(pixels, None), folder, [protocol.file(i) for i in missing]))
    return written


def finish(protocol: Protocol, folder: Path, npz: str | None, ranks: int = 1) -> None:
    """Wait for the images of other processes; join all to the .npz if there shall be one; tidy up.

    Raises:
        TimeoutError: other processes have stopped.
        ValueError: an image that was damaged meanwhile, by its path.
    """
    if ranks > 1:
        _wait(protocol, folder)
    if npz is not None and not Path(npz).exists():
        _join(protocol, folder, Path(npz))
    for unfinished in folder.glob(".*.partial.png"):  # of processes that were killed
        unfinished.unlink()
    if npz is not None:
        shutil.rmtree(_parts(Path(npz)), ignore_errors=True)


def _missing(protocol: Protocol, folder: Path, index: Sequence[int]) -> list[int]:
    """Those images of which there is no file, or one that is damaged."""

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
        ValueError: one line: there is none, or a loss of power left it empty, or it is damaged.
    """
    path = folder / protocol.file(i)
    try:
        pixels_HW3 = np.asarray(decode(path))
        if pixels_HW3.shape != (*protocol.image_shape, 3):
            raise ValueError("has another size")
    except ValueError as error:
        raise ValueError(f"{path}: {error}; call again, which draws it once more") from error
    return pixels_HW3


def _wait(protocol: Protocol, folder: Path) -> None:
    """Wait until all images are there and whole: others may still have to replace damaged ones."""
    missing = {protocol.file(i): i for i in range(protocol.count)}
    since = told = time.monotonic()
    while True:
        there = [missing[name] for name in os.listdir(folder) if name in missing]
        whole = {*there} - {*_missing(protocol, folder, there)}
        missing = {name: i for name, i in missing.items() if i not in whole}
        if not missing:
            return
        now = time.monotonic()
        if whole:
            since = now
        lacking = f"{len(missing)} of {protocol.count} images are missing"
        if now - since > PATIENCE_SECONDS:
            raise TimeoutError(
                f"{folder}: nothing was written for {PATIENCE_SECONDS / 3600:g} hours, and {lacking}; see what became "
                "of the other processes and call again, it goes on"
            )
        if now - told > TELL_SECONDS:
            print(f"waiting for other processes: {lacking}, the last came {now - since:.0f} s ago", file=sys.stderr)
            told = now
        time.sleep(POLL_SECONDS)


def _join(protocol: Protocol, folder: Path, npz: Path) -> None:
    """Write the .npz, image by image."""

    def images(order: Sequence[int]) -> Iterator[np.ndarray]:
        return track(in_threads(partial(_read, protocol, folder), order), len(order), "joining images")

    save_npz(images, protocol.image_shape, protocol.labels, npz, protocol.seed)


def _parts(npz: Path) -> Path:
    return npz.with_name(f".{npz.name}.parts")


def _in_use(path: Path) -> bool:
    if path.is_dir():
        return any(entry.name[0] != "." for entry in path.iterdir())
    return path.exists() or _parts(path).exists()


def _differences(before: dict[str, Any], protocol: Protocol) -> list[str]:
    """The settings in which what is there differs."""
    now = json.loads(json.dumps(protocol.written()))
    other = [name for name in now if name not in FREE and before.get(name) != now[name]]
    said = {name: (before.get(name), now[name]) for name in other if name not in ("classes", "sha256")}
    if "counts" in said:
        said["counts"] = _how_many(before["counts"]), _how_many(protocol.counts)
    return [f"{name} = {said[name][0]}, not {said[name][1]}" if name in said else f"other {name}" for name in other]


def _how_many(counts: Sequence[int]) -> str:
    even = len({*counts}) == 1
    return f"{counts[0]} of each class" if even else f"{sum(counts)} in all, {min(counts)} to {max(counts)} of a class"
