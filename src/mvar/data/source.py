"""Pixels for training: every image of a set decoded, resized and cropped to the model's size.

Shapes: B batch, h w the model's image size in pixels, H W an image's own size after resizing.
Protocol of VAR (Tian et al. 2024): Lanczos to 1.125 times the size, random crop in training, centre crop otherwise,
no flips.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar.data.decoding import decode, read_bytes
from mvar.data.images import ImageFolder, report
from mvar.data.order import batch_indices, crop_noise
from mvar.data.progress import track
from mvar.data.shards import Member, ShardSet, mark
from mvar.data.subset import evenly_spaced
from mvar.data.threads import in_threads

CACHE_BYTES = 2 * 2**30
BATCH_THREADS = 4  # that decode one batch; loaders read several at once, on every rank of a machine


@dataclass(frozen=True, kw_only=True)
class PixelSource:
    """Images of one size with their labels, from memory where they fit, else from their files.

    Attributes:
        paths: the readable images, files or members of shards.
        labels: int64 (n,); zeros where there are no classes.
        classes: class names; empty for a set without classes.
        image_shape: (h, w) of what `batch` gives.
        resize_factor: size before cropping over the size after it.
        seed: of the random crops.
        bad: images that were left out, with the reason.
        marks: of each image, a hash of its file.
        cache: uint8 (H, W, 3) of every image before cropping, or None where they did not fit.
    """

    paths: Sequence[Path | Member]
    labels: Tensor
    classes: list[str]
    image_shape: tuple[int, int]
    resize_factor: float
    seed: int
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
        seed: int = 0,
        on_bad_image: Literal["skip", "error"] = "skip",
        cache_bytes: int = CACHE_BYTES,
    ) -> "PixelSource":
        """Decode every image once, so that bad ones are known before training starts.

        Shards whose images do not fit into memory are not decoded: their index knows.

        Args:
            seed: of the random crops.
            on_bad_image: "skip" leaves unreadable images out with one warning for all, "error" raises it.
            cache_bytes: memory that resized images may take; larger sets are decoded again for every batch.

        Raises:
            ValueError: an option is out of range, no image is readable, or one is not and on_bad_image is "error".
        """
        if resize_factor < 1:
            raise ValueError(f"resize_factor = {resize_factor}: must be at least 1, an image is cropped after resizing")
        if on_bad_image not in ("skip", "error"):
            raise ValueError(f"on_bad_image = {on_bad_image!r}: choose skip or error")
        h, w = image_shape
        used, fits = 0, len(index.paths) * 3 * round(h * resize_factor) * round(w * resize_factor) <= cache_bytes
        cache: list[np.ndarray] = []
        good: list[int] = []
        marks: list[str] = []
        bad: list[tuple[Path | Member, str]] = []
        small = 0

        def load(path: Path | Member) -> tuple[str, bool, np.ndarray | None] | str:
            try:
                if isinstance(path, Member) and not fits:
                    width, height = path.image_size
                    return path.mark, height < h or width < w, None
                content = _content(path)
                image = decode(BytesIO(content))
            except ValueError as error:
                return str(error)
            is_small = image.height < h or image.width < w
            return mark(content), is_small, resized(image, image_shape, resize_factor) if fits else None

        paths: Sequence[Path | Member] = index.paths
        for i, loaded in enumerate(track(in_threads(load, paths), len(paths), "reading images")):
            if isinstance(loaded, str):
                bad.append((paths[i], loaded))
                continue
            own_mark, is_small, pixels_HW3 = loaded
            good.append(i)
            marks.append(own_mark)
            small += is_small
            if fits and pixels_HW3 is not None:
                cache.append(pixels_HW3)
                used += pixels_HW3.nbytes
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
            image_shape=image_shape,
            resize_factor=resize_factor,
            seed=seed,
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
        indices_N, _ = batch_indices(len(self), min(n, len(self)), self.seed, 0)
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
            epochs_B: the epoch of each, which places its crop, with the seed and its index; None crops the centre.

        Raises:
            ValueError: a file that was readable at the start is no longer.
        """
        indices_B = torch.as_tensor(indices_B)
        chosen = indices_B.tolist()
        noise: list[tuple[float, float] | None] = [None] * len(chosen)
        if epochs_B is not None and self.resize_factor != 1:
            noise = crop_noise(self.seed, epochs_B, indices_B).tolist()
        pixels_Bhw3 = np.empty((len(chosen), *self.image_shape, 3), dtype=np.uint8)
        images = (self.cache[i] for i in chosen) if self.cache else in_threads(self._load, chosen, BATCH_THREADS)
        for out_hw3, image_HW3, place in zip(pixels_Bhw3, images, noise, strict=True):
            out_hw3[:] = crop(image_HW3, self.image_shape, place)
        return torch.from_numpy(pixels_Bhw3).permute(0, 3, 1, 2), self.labels[chosen]

    def _load(self, i: int) -> np.ndarray:
        try:
            return resized(decode(BytesIO(_content(self.paths[i]))), self.image_shape, self.resize_factor)
        except ValueError as error:
            raise ValueError(f"data: {self.name(i)!r} was readable before and is not now: {error}") from error


def fitted(image: Image.Image, image_shape: tuple[int, int]) -> Tensor:
    """One image as training sees it without random crops: resized, its centre cropped; (3, h, w) float in [0, 1]."""
    return _as_pixels(crop(resized(image, image_shape, 1), image_shape, None))


def whole(image: Image.Image, image_shape: tuple[int, int]) -> Tensor:
    """All of one image at another size, (3, h, w) float in [0, 1].

    Raises:
        ValueError: its aspect differs by more than 2 %, so that its contents would be stretched.
    """
    h, w = image_shape
    if not 0.98 < image.width * h / (image.height * w) < 1.02:
        raise ValueError(
            f"image: is {image.width}x{image.height} pixels, the model draws {w}x{h}; crop it to this aspect first"
        )
    return _as_pixels(np.asarray(image.resize((w, h), Image.Resampling.LANCZOS)))


def resized(image: Image.Image, image_shape: tuple[int, int], resize_factor: float) -> np.ndarray:
    """Resize by Lanczos, aspect kept, to the smallest size that covers resize_factor times the shape; (H, W, 3)."""
    H, W = (round(side * resize_factor) for side in image_shape)
    scale = max(H / image.height, W / image.width)
    size = max(W, round(image.width * scale)), max(H, round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def crop(image_HW3: np.ndarray, image_shape: tuple[int, int], noise: tuple[float, float] | None) -> np.ndarray:
    """Cut (h, w, 3) out, placed by two numbers in (0, 1), vertical and horizontal, or in the centre."""
    (H, W, _), (h, w) = image_HW3.shape, image_shape
    if noise is None:
        top, left = (H - h) // 2, (W - w) // 2
    else:
        top, left = int(noise[0] * (H - h + 1)), int(noise[1] * (W - w + 1))
    return image_HW3[top : top + h, left : left + w]


def _content(path: Path | Member) -> bytes:
    return path.open().read() if isinstance(path, Member) else read_bytes(path)


def _as_pixels(pixels_hw3: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels_hw3.copy()).permute(2, 0, 1) / 255
