"""Views of images: what training sees of each one in each epoch.

Shapes: B batch, H W an image's own size after resizing, h w the model's image size.
Protocol of VAR (Tian et al. 2024): Lanczos to 1.125 times the size, random crop in training, centre crop otherwise,
no flips. Optional augmentation moves and scales the crop's box and resamples it once.
"""

from collections.abc import Iterable, Sequence
from math import ceil, floor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mvar.data.reading import resized
from mvar.ops.noise import uniform
from mvar.settings import Augmentation, ResizeFactor, Seed, settings

# Small enough that an image stays what it shows. The sizes are mostly below 1, so that little is lost at the edges.
MOST_SHIFT = 0.04  # of the side, up or down and left or right; a pixel where that is less
SIZES = (0.84, 1.06)  # least and largest
FLIPPED = 0.5  # the chance of a mirror image, left to right
REACH = 4  # pixels beside a box that Lanczos looks at: 3, in an image that shrinks to the least size 3 / 0.84


def view_noise(seed: int, epochs_B: Tensor, indices_B: Tensor) -> Tensor:
    """The random numbers of views, float32 (B, 6) in (0, 1), from (seed, epoch, image index) alone.

    Columns: top and left of the crop, vertical and horizontal shift, size, flip.
    """
    rows = [uniform(seed, [i], e, (6,)) for e, i in zip(epochs_B.tolist(), indices_B.tolist(), strict=True)]
    return torch.cat(rows)


@settings
class Views:
    """Makes views, each a pure function of (seed, epoch, image index).

    Attributes:
        image_shape: (h, w) of a view.
        resize_factor: size before cropping over the size after it; 1 crops the centre.
        augment: what else is changed at random.
        seed: of the random numbers.
    """

    image_shape: tuple[int, int]
    resize_factor: ResizeFactor
    augment: tuple[Augmentation, ...] = ()
    seed: Seed

    @property
    def vary(self) -> bool:
        """Whether they differ from epoch to epoch."""
        return self.resize_factor != 1 or len(self.augment) > 0

    @property
    def cover(self) -> tuple[int, int]:
        """The height and width that an image covers from which views are taken."""
        h, w = self.image_shape
        return round(h * self.resize_factor), round(w * self.resize_factor)

    def batch(
        self, images_HW3: Iterable[np.ndarray], indices_B: Tensor | None = None, epochs_B: Tensor | None = None
    ) -> Tensor:
        """One view of each image, uint8 (B, 3, h, w), channels last in memory.

        Args:
            images_HW3: B resized images.
            indices_B: the images' indices; not needed for centre crops.
            epochs_B: the epoch of each image; None gives centre crops without augmentation.
        """
        images = list(images_HW3)
        noise: list[list[float] | None] = [None] * len(images)
        if indices_B is not None and epochs_B is not None and self.vary:
            noise = view_noise(self.seed, epochs_B, indices_B).tolist()
        views = [self._view(image_HW3, numbers) for image_HW3, numbers in zip(images, noise, strict=True)]
        pixels_Bhw3 = np.stack(views) if views else np.empty((0, *self.image_shape, 3), dtype=np.uint8)
        return torch.from_numpy(pixels_Bhw3).permute(0, 3, 1, 2)

    def _view(self, image_HW3: np.ndarray, noise: Sequence[float] | None) -> np.ndarray:
        """One view, (h, w, 3): the centre, or the one that `view_noise` chose."""
        (H, W, _), (h, w) = image_HW3.shape, self.image_shape
        top, left = (H - h) // 2, (W - w) // 2
        if noise is not None and self.resize_factor != 1:
            top, left = int(noise[0] * (H - h + 1)), int(noise[1] * (W - w + 1))
        if noise is None or not self.augment:
            return image_HW3[top : top + h, left : left + w]
        view_hw3 = self._moved(image_HW3, top, left, noise)
        return view_hw3[:, ::-1] if "flip" in self.augment and noise[5] < FLIPPED else view_hw3

    def _moved(self, image_HW3: np.ndarray, top: int, left: int, noise: Sequence[float]) -> np.ndarray:
        """The crop at (top, left), shifted and scaled; pixels beyond the image repeat its edge."""
        h, w = self.image_shape
        down = right = 0.0
        size = SIZES[0] + noise[4] * (SIZES[1] - SIZES[0]) if "scale" in self.augment else 1.0
        if "shift" in self.augment:
            down, right = (noise[2] * 2 - 1) * max(1, MOST_SHIFT * h), (noise[3] * 2 - 1) * max(1, MOST_SHIFT * w)
        if size == 1:  # by whole pixels, so that lines stay as sharp as they are
            top, left = top - round(down), left - round(right)
            return _part(image_HW3, range(top, top + h), range(left, left + w))
        box_h, box_w = h / size, w / size
        y, x = top + (h - box_h) / 2 - down / size, left + (w - box_w) / 2 - right / size
        rows = range(floor(y) - REACH, ceil(y + box_h) + REACH)
        columns = range(floor(x) - REACH, ceil(x + box_w) + REACH)
        y, x = y - rows[0], x - columns[0]
        part = Image.fromarray(_part(image_HW3, rows, columns))
        return np.asarray(part.resize((w, h), Image.Resampling.LANCZOS, box=(x, y, x + box_w, y + box_h)))


def _part(image_HW3: np.ndarray, rows: range, columns: range) -> np.ndarray:
    return image_HW3.take(rows, 0, mode="clip").take(columns, 1, mode="clip")


def fitted(image: Image.Image, image_shape: tuple[int, int]) -> Tensor:
    """One image as training sees it without random crops: resized, its centre cropped; (3, h, w) float in [0, 1]."""
    views = Views(image_shape=image_shape, resize_factor=1, seed=0)
    return views.batch([resized(image, image_shape)])[0] / 255


def scaled(image: Image.Image, image_shape: tuple[int, int]) -> Tensor:
    """The uncropped image at another size, (3, h, w) float in [0, 1].

    Raises:
        ValueError: its aspect differs by more than 2 %, so that scaling would stretch its contents.
    """
    h, w = image_shape
    if not 0.98 < image.width * h / (image.height * w) < 1.02:
        raise ValueError(
            f"image: is {image.width}x{image.height} pixels, the model draws {w}x{h}; crop it to this aspect first"
        )
    pixels_hw3 = np.array(image.resize((w, h), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels_hw3).permute(2, 0, 1) / 255
