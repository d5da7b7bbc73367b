"""Pixels for training: every image of a set decoded, resized and cropped to the model's size.

Shapes: B batch, h w the model's image size in pixels, H W an image's own size after resizing; see `mvar.data.views`.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mvar.data.augment import Augmentation
from mvar.data.images.decoding import decode
from mvar.data.images.folders import ImageFolder, report
from mvar.data.order import batch_indices
from mvar.data.processes import in_processes
from mvar.data.reading import Loaded, contents, is_small, load
from mvar.data.shards.local import Member, ShardSet
from mvar.data.subset import evenly_spaced
from mvar.data.threads import in_threads
from mvar.data.views import Views
from mvar.progress import track

CACHE_BYTES = 2 * 2**30
BATCH_THREADS = 4  # that decode one batch; loaders read several at once, on every rank of a machine


@dataclass(frozen=True, kw_only=True)
class PixelSource:
    """Images of one size with their labels, from memory where they fit, else from their files.

    Attributes:
        paths: the readable images, files or members of shards.
        labels: int64 (n,); zeros where there are no classes.
        classes: class names; empty for a set without classes.
        views: what `batch` gives of each image.
        bad: images that were left out, with the reason.
        marks: of each image, a hash of its file.
        cache: uint8 (H, W, 3) of every image before cropping, or None where they did not fit.
    """

    paths: Sequence[Path | Member]
    labels: Tensor
    classes: list[str]
    views: Views
    bad: list[tuple[Path | Member, str]]
    marks: list[str]
    cache: list[np.ndarray] | None

    @classmethod
    def read(
        cls,
        index: ImageFolder | ShardSet,
        image_shape: tuple[int, int],
        *,
        resize_factor: float = 1.125,
        augment: Sequence[Augmentation] = (),
        seed: int = 0,
        on_bad_image: Literal["skip", "error"] = "skip",
        cache_bytes: int = CACHE_BYTES,
    ) -> "PixelSource":
        """Decode every image once, so that bad ones are known before training starts.

        Shards whose images do not fit into memory are not decoded: their index knows.

        Args:
            resize_factor, augment, seed: see `Views`.
            on_bad_image: "skip" leaves unreadable images out with one warning for all, "error" raises it.
            cache_bytes: memory that resized images may take; larger sets are decoded again for every batch.

        Raises:
            ValueError: an option is out of range, no image is readable, or one is not and on_bad_image is "error".
        """
        views = Views(image_shape=image_shape, resize_factor=resize_factor, augment=tuple(augment), seed=seed)
        if on_bad_image not in ("skip", "error"):
            raise ValueError(f"on_bad_image = {on_bad_image!r}: choose skip or error")
        h, w = image_shape
        paths: Sequence[Path | Member] = index.paths
        used, fits = 0, len(paths) * 3 * round(h * resize_factor) * round(w * resize_factor) <= cache_bytes
        cache: list[np.ndarray] = []
        good: list[int] = []
        marks: list[str] = []
        bad: list[tuple[Path | Member, str]] = []
        small = 0
        if isinstance(index, ShardSet) and not fits:
            found: Iterator[Loaded | str] = map(partial(_indexed, image_shape=image_shape), index.paths)
        else:
            found = in_processes(partial(load, image_shape=image_shape, resize_factor=resize_factor, keep=fits), paths)
        for i, loaded in enumerate(track(found, len(paths), "reading images")):
            if isinstance(loaded, str):
                bad.append((paths[i], loaded))
                continue
            good.append(i)
            marks.append(loaded.mark)
            small += loaded.small
            if fits and loaded.pixels_HW3 is not None:
                cache.append(loaded.pixels_HW3)
                used += loaded.pixels_HW3.nbytes
                if used > cache_bytes:
                    fits = False
                    cache.clear()

        if bad:
            text = report(bad, len(paths), index.root)
            if on_bad_image == "error" or not good:
                raise ValueError(text)
            warnings.warn(text, stacklevel=2)
        if small:
            text = f"{small} of {len(good)} images in {str(index.root)!r} are smaller than {w}x{h} pixels"
            warnings.warn(f"{text}; they are enlarged", stacklevel=2)
        return cls(
            paths=[paths[i] for i in good],
            labels=torch.tensor([index.labels[i] for i in good]),
            classes=index.classes,
            views=views,
            bad=bad,
            marks=marks,
            cache=cache if fits else None,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, indices: Sequence[int]) -> "PixelSource":
        """The same source with these images only; the cached pixels are shared."""
        return replace(
            self,
            paths=[self.paths[i] for i in indices],
            labels=self.labels[list(indices)],
            marks=[self.marks[i] for i in indices],
            cache=self.cache and [self.cache[i] for i in indices],
        )

    def at_most(self, most: int) -> "PixelSource":
        """At most so many of the images, evenly spaced."""
        return self if len(self) <= most else self.select(evenly_spaced(len(self), most))

    def first(self, n: int, batch_size: int) -> Iterator[Tensor]:
        """The first n images of the first epoch, their centre, in batches uint8 (at most batch_size, 3, h, w)."""
        indices_N, _ = batch_indices(len(self), min(n, len(self)), self.views.seed, 0)
        for indices_B in indices_N.split(batch_size):
            yield self.batch(indices_B)[0]

    def fingerprint(self) -> str:
        """A hash of the files and labels of all images in their order: what decides a run besides its settings."""
        rows = zip(self.marks, self.labels.tolist(), strict=True)
        listing = "".join(f"{own_mark} {label}\n" for own_mark, label in rows)
        return f"files {hashlib.sha256(listing.encode()).hexdigest()}"

    def name(self, i: int) -> str:
        """The file of an image, or its shard and member."""
        return str(self.paths[i])

    def batch(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (B, 3, h, w), channels last in memory, and labels int64 (B,).

        Args:
            indices_B: which images.
            epochs_B: the epoch of each, which decides its view, with the seed and its index; None gives the centre.

        Raises:
            ValueError: a file that was readable at the start is no longer.
        """
        indices_B = torch.as_tensor(indices_B)
        chosen = indices_B.tolist()
        images = (self.cache[i] for i in chosen) if self.cache else in_threads(self._load, chosen, BATCH_THREADS)
        return self.views.batch(images, indices_B, epochs_B), self.labels[chosen]

    def _load(self, i: int) -> np.ndarray:
        try:
            return self.views.resized(decode(BytesIO(contents(self.paths[i]))))
        except ValueError as error:
            raise ValueError(f"data: {self.name(i)!r} was readable before and is not now: {error}") from error


def _indexed(member: Member, image_shape: tuple[int, int]) -> Loaded | str:
    """What a shard's index knows of an image."""
    try:
        return Loaded(member.mark, is_small(member.image_size, image_shape), None)
    except ValueError as error:
        return str(error)
