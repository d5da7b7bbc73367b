"""Token maps of images as users give them.

Shapes: B images, H W pixels, P_k tokens of scale k.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mvar.data.images.decoding import as_image
from mvar.data.views import fitted
from mvar.tokenizer.network import Tokenizer

ImageLike = str | Path | Image.Image
ENCODED_AT_ONCE = 64  # images


def token_maps(tokenizer: Tokenizer, images: Sequence[ImageLike] | Tensor) -> list[Tensor]:
    """Token maps (B, P_k) of images, a few encoded at a time.

    Args:
        tokenizer: whose device the maps are on.
        images: files or Pillow's images, resized and cropped as in training; or pixels (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: no image, or one that cannot be used.
    """
    if isinstance(images, (str, Path, Image.Image)):
        images = [images]
    if not len(images):
        raise ValueError("images is empty: give at least one")
    device, parts = tokenizer.quantizer.codebook.device, []
    for start in range(0, len(images), ENCODED_AT_ONCE):
        some = images[start : start + ENCODED_AT_ONCE]
        if isinstance(some, Tensor):
            pixels_B3HW = some
        else:
            pixels_B3HW = torch.stack([fitted(as_image(i), tokenizer.config.image_shape) for i in some])
        parts.append(tokenizer.encode(pixels_B3HW.to(device)))
    return [torch.cat(maps) for maps in zip(*parts, strict=True)]
