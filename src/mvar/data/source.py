"""Pixels for training: every image of a folder decoded, resized and cropped to the model's size.

Shapes: B batch, h w the model's image size in pixels, H W an image's own size after resizing.
Protocol of VAR (Tian et al. 2024): Lanczos to 1.125 times the size, random crop in training, centre crop otherwise,
no flips.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar.data.images import ImageFolder, decode, report
from mvar.data.progress import track

CACHE_BYTES = 2 * 2**30
Loaded = TypeVar("Loaded")


class Source(Protocol):
    """What training reads batches from: pixels or token maps, of images that are numbered from 0."""

    @property
    def labels(self) -> Tensor:
        """One class index an image, int64 (n,); zeros where there are no classes."""

    @property
    def classes(self) -> list[str]:
        """Class names; empty for a set without classes."""

    def __len__(self) -> int:
        """The number of images."""

    def batch(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What is trained on and labels (B,); the epochs decide how each image is cropped, None crops the centre."""

    def name(self, i: int) -> str:
        """How messages call an image."""


@dataclass(frozen=True, kw_only=True)
class PixelSource:
    """Images of one size with their labels, from memory where they fit, else from their files.

    Attributes:
        paths: the readable image files.
        labels: int64 (n,); zeros where there are no classes.
        classes: class names; empty for a set without classes.
        image_shape: (h, w) of what `batch` gives.
        resize_factor: size before cropping over the size after it.
        bad: files that were left out, with the reason.
        cache: uint8 (H, W, 3) of every image before cropping, or None where they did not fit.
    """

    paths: list[Path]
    labels: Tensor
    classes: list[str]
    image_shape: tuple[int, int]
    resize_factor: float
    bad: list[tuple[Path, str]]
    cache: list[np.ndarray] | None

    @classmethod
    def read(
        cls,
        index: ImageFolder,
        image_shape: tuple[int, int],
        *,
        resize_factor: float = 1.125,
        on_bad_image: Literal["skip", "error"] = "skip",
        cache_bytes: int = CACHE_BYTES,
    ) -> "PixelSource":
        """Decode every image once, so that bad ones are known before training starts.

        Args:
            on_bad_image: "skip" leaves unreadable images out with one warning for all, "error" raises it.
            cache_bytes: memory that resized images may take; larger sets are decoded anew for every batch.

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
        bad: list[tuple[Path, str]] = []
        small = 0

        def load(path: Path) -> tuple[bool, np.ndarray | None] | str:
            try:
                image = decode(path)
            except ValueError as error:
                return str(error)
            is_small = image.height < h or image.width < w
            return is_small, _resized(image, image_shape, resize_factor) if fits else None

        for i, loaded in enumerate(track(_map(load, index.paths), len(index.paths), "reading images")):
            if isinstance(loaded, str):
                bad.append((index.paths[i], loaded))
                continue
            is_small, pixels_HW3 = loaded
            good.append(i)
            small += is_small
            if fits and pixels_HW3 is not None:
                cache.append(pixels_HW3)
                used += pixels_HW3.nbytes
                if used > cache_bytes:
                    fits = False
                    cache.clear()

        if bad:
            text = report(bad, len(index.paths), index.root)
            if on_bad_image == "error" or not good:
                raise ValueError(text)
            warnings.warn(text, stacklevel=2)
        if small:
            text = f"{small} of {len(good)} images in {str(index.root)!r} are smaller than {w}x{h} pixels"
            warnings.warn(f"{text}; they are enlarged", stacklevel=2)
        return cls(
            paths=[index.paths[i] for i in good],
            labels=torch.tensor([index.labels[i] for i in good]),
            classes=index.classes,
            image_shape=image_shape,
            resize_factor=resize_factor,
            bad=bad,
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
            cache=self.cache and [self.cache[i] for i in indices],
        )

    def spread(self, most: int) -> "PixelSource":
        """At most so many of the images, evenly spaced and so spread over the classes."""
        n = len(self)
        return self if n <= most else self.select([i * n // most for i in range(most)])

    def batch(self, indices_B: Sequence[int] | Tensor, crop_noise_B2: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pixels uint8 (B, 3, h, w), channels last in memory, and labels int64 (B,).

        Args:
            indices_B: which images.
            crop_noise_B2: numbers in (0, 1) that place the crop, vertical and horizontal; None crops the centre.

        Raises:
            ValueError: a file that was readable at the start is no longer.
        """
        chosen = torch.as_tensor(indices_B).tolist()
        noise = [(None, None)] * len(chosen) if crop_noise_B2 is None else crop_noise_B2.tolist()
        h, w = self.image_shape
        pixels_Bhw3 = np.empty((len(chosen), h, w, 3), dtype=np.uint8)
        images = (self.cache[i] for i in chosen) if self.cache else _map(self._load, [self.paths[i] for i in chosen])
        for out_hw3, image_HW3, (v, u) in zip(pixels_Bhw3, images, noise, strict=True):
            top, left = _offset(image_HW3.shape[0] - h, v), _offset(image_HW3.shape[1] - w, u)
            out_hw3[:] = image_HW3[top : top + h, left : left + w]
        return torch.from_numpy(pixels_Bhw3).permute(0, 3, 1, 2), self.labels[chosen]

    def _load(self, path: Path) -> np.ndarray:
        try:
            return _resized(decode(path), self.image_shape, self.resize_factor)
        except ValueError as error:
            raise ValueError(f"data: {str(path)!r} was readable before and is not now: {error}") from error


def fitted(image: Image.Image, image_shape: tuple[int, int]) -> Tensor:
    """One image as training sees it without random crops: resized, its centre cropped; (3, h, w) float in [0, 1]."""
    h, w = image_shape
    pixels_HW3 = _resized(image, image_shape, 1)
    top, left = _offset(pixels_HW3.shape[0] - h, None), _offset(pixels_HW3.shape[1] - w, None)
    return _as_pixels(pixels_HW3[top : top + h, left : left + w])


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


def _as_pixels(pixels_hw3: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels_hw3.copy()).permute(2, 0, 1) / 255


def _resized(image: Image.Image, image_shape: tuple[int, int], resize_factor: float) -> np.ndarray:
    """Resize by Lanczos, aspect kept, to the smallest size that covers resize_factor times the shape; (H, W, 3)."""
    H, W = (round(side * resize_factor) for side in image_shape)
    scale = max(H / image.height, W / image.width)
    size = max(W, round(image.width * scale)), max(H, round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def _offset(room: int, noise: float | None) -> int:
    """Where a crop starts that may move by `room` pixels: by noise in (0, 1), or in the centre."""
    return room // 2 if noise is None else int(noise * (room + 1))


def _map(load: Callable[[Path], Loaded], paths: Sequence[Path]) -> Iterator[Loaded]:
    """Load files in threads (Pillow decodes outside the interpreter's lock), in order, a bounded number ahead."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), 1024):
            yield from pool.map(load, paths[start : start + 1024])
