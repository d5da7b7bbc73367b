"""Pixels for training: every image of a set decoded, resized and cropped to the model's size.

Shapes: B batch, h w the model's image size in pixels, H W an image's own size after resizing; see `mvar.data.views`.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from mvar.data.images.decoding import decode
from mvar.data.images.folders import ImageFolder, bad_images
from mvar.data.order import batch_indices, evenly_spaced
from mvar.data.reading import Loaded, contents, load, resized
from mvar.data.shards.local import Member, ShardSet
from mvar.data.views import Views
from mvar.data.workers import in_processes, in_threads
from mvar.progress import track
from mvar.settings import Augmentation

CACHE_BYTES = 2 * 2**30
BATCH_THREADS = 4  # that decode one batch; loaders read several at once, on every rank of a machine


class ReadOptions(TypedDict, total=False):
    """Options of `PixelSource.read`."""

    resize_factor: float
    augment: Sequence[Augmentation]
    seed: int
    on_bad_image: Literal["skip", "error"]
    cache_bytes: int


@dataclass(frozen=True, kw_only=True)
class PixelSource:
    """Images of one size (a `Source`), from memory where they fit, else from their files.

    Attributes:
        paths: the readable images, files or members of shards.
        views: what `batch` returns of each image.
        marks: a hash of each image's file.
        cache: uint8 (H, W, 3) of every image before cropping, or None where they did not fit.
    """

    paths: Sequence[Path | Member]
    labels: Tensor
    classes: list[str]
    views: Views
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

        Shards whose images do not fit into memory are not decoded: their index knows which are bad.

        Args:
            resize_factor, augment, seed: see `Views`.
            on_bad_image: "skip" leaves unreadable images out with one warning for all, "error" raises it.
            cache_bytes: memory for resized images; larger sets are decoded again for every batch.

        Raises:
            ValueError: an option is out of range, no image is readable, or one is not and on_bad_image is "error".
        """
        views = Views(image_shape=image_shape, resize_factor=resize_factor, augment=tuple(augment), seed=seed)
        paths: Sequence[Path | Member] = index.paths
        fits = len(paths) * 3 * math.prod(views.cover) <= cache_bytes
        found: Iterator[Loaded | str]
        if isinstance(index, ShardSet) and not fits:
            found = (one.problem or Loaded(one.mark, (one.width, one.height)) for one in index.paths)
        else:
            found = in_processes(partial(load, cover=views.cover if fits else None), paths)
        (h, w), cache = image_shape, list[np.ndarray]() if fits else None
        good, marks, bad, small, used = list[int](), list[str](), list[tuple[Path | Member, str]](), 0, 0
        for i, loaded in enumerate(track(found, len(paths), "reading images")):
            if isinstance(loaded, str):
                bad.append((paths[i], loaded))
                continue
            good.append(i)
            marks.append(loaded.mark)
            small += loaded.size[0] < w or loaded.size[1] < h
            if cache is not None and loaded.pixels_HW3 is not None:
                cache.append(loaded.pixels_HW3)
                used += loaded.pixels_HW3.nbytes
                cache = cache if used <= cache_bytes else None

        if bad:
            text = bad_images(bad, len(paths), index.root)
            if on_bad_image == "error" or not good:
                raise ValueError(text)
            warnings.warn(text, stacklevel=2)
        if small:
            text = f"{small} of {len(good)} images in {str(index.root)!r} are smaller than {w}x{h} pixels"
            warnings.warn(f"{text}; they are enlarged", stacklevel=2)
        labels = torch.tensor([index.labels[i] for i in good])
        used_paths = [paths[i] for i in good]
        return cls(paths=used_paths, labels=labels, classes=index.classes, views=views, marks=marks, cache=cache)

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
        """At most `most` of the images, evenly spaced."""
        return self if len(self) <= most else self.select(evenly_spaced(len(self), most))

    def first(self, n: int, batch_size: int) -> Iterator[Tensor]:
        """Centre crops of the first n images of the first epoch, uint8 (at most batch_size, 3, h, w)."""
        indices_N, _ = batch_indices(len(self), min(n, len(self)), self.views.seed, 0)
        for indices_B in indices_N.split(batch_size):
            yield self.batch(indices_B)[0]

    def fingerprint(self) -> str:
        """A hash of the files and labels of all images in their order: what decides a run besides its settings."""
        listing = "".join(f"{mark} {label}\n" for mark, label in zip(self.marks, self.labels.tolist(), strict=True))
        return f"files {hashlib.sha256(listing.encode()).hexdigest()}"

    def name(self, i: int) -> str:
        """The file of an image, or its shard and member."""
        return str(self.paths[i])

    def batch(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (B, 3, h, w), channels last in memory, and labels int64 (B,); without epochs centre crops.

        Raises:
            ValueError: a file that was readable at the start no longer is.
        """
        indices_B = torch.as_tensor(indices_B)
        chosen = indices_B.tolist()
        images = (self.cache[i] for i in chosen) if self.cache else in_threads(self._load, chosen, BATCH_THREADS)
        return self.views.batch(images, indices_B, epochs_B), self.labels[chosen]

    def _load(self, i: int) -> np.ndarray:
        try:
            return resized(decode(BytesIO(contents(self.paths[i]))), self.views.cover)
        except ValueError as error:
            raise ValueError(f"data: {self.name(i)!r} was readable before and is not now: {error}") from error
