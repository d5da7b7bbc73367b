"""Holes: the part of an image to be repainted, in pixels, in cells of the token maps, and at its border.

Shapes: H W pixels, U V those of a box around a hole, h w cells of a token map, C channels of an image's mode. A hole is
bool (H, W), true where the image is repainted.
"""

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mvar.data.images.colour import like, paintable
from mvar.data.images.decoding import as_image
from mvar.sampling.engine import to_images
from mvar.scales import ScaleSchedule
from mvar.settings import given

FEATHER = 4  # pixels over which a pasted hole is blended by default
KEPT_WHOLE_TOKENS = 3  # maps of at most this many tokens are always kept
MaskLike = str | Path | Image.Image | Tensor | np.ndarray


def read_hole(
    shape: tuple[int, int],
    mask: MaskLike | None = None,
    box: Sequence[int] | None = None,
    keep_box: Sequence[int] | None = None,
) -> Tensor:
    """The hole that mask, box or keep_box describes.

    Args:
        shape: (height, width) of the image.
        mask: an image of this size, white where to repaint (transparent is black); or an array (H, W): bool, uint8, or
            float in [0, 1].
        box: (left, top, right, bottom) in pixels: repaint what is inside.
        keep_box: likewise: repaint what is outside.

    Raises:
        ValueError: none or several are given, another size, a box outside the image, or a hole of nothing or all.
    """
    boxes = given({"box": box, "keep_box": keep_box})
    names = [*given({"mask": mask}), *boxes]
    if len(names) != 1:
        have = " and ".join(names) or "none of them"
        raise ValueError(f"mask, box, keep_box: have {have}; give exactly one to say what to repaint")
    name = names[0]
    hole_HW = _from_mask(mask, shape) if mask is not None else _from_box(name, boxes[name], shape)
    if name == "keep_box":
        hole_HW = ~hole_HW
    if not hole_HW.any():
        raise ValueError(f"{name}: marks nothing to repaint; {'shrink it' if boxes else 'make some of it white'}")
    if hole_HW.all():
        raise ValueError(f"{name}: repaints the whole image, so that nothing of it would stay; use sample instead")
    return hole_HW


def _from_mask(mask: MaskLike, shape: tuple[int, int]) -> Tensor:
    if isinstance(mask, (Tensor, np.ndarray)):
        values = torch.as_tensor(mask).cpu()
        hole_HW = values if values.dtype == torch.bool else values >= (0.5 if values.is_floating_point() else 128)
    else:
        hole_HW = torch.from_numpy(np.asarray(as_image(mask, "mask", background="black").convert("L")) >= 128)
    if tuple(hole_HW.shape) != shape:
        have, need = ("x".join(map(str, reversed(size))) for size in (hole_HW.shape, shape))
        raise ValueError(f"mask: is {have} pixels, the image is {need}; give a mask of the image's size")
    return hole_HW


def _from_box(name: str, corners: Sequence[int], shape: tuple[int, int]) -> Tensor:
    (H, W), asked = shape, ",".join(map(str, corners))
    wrong = f"{name} = {asked}: give left,top,right,bottom in whole pixels, left < right <= {W} and top < bottom <= {H}"
    try:
        left, top, right, bottom = map(operator.index, corners)
    except (TypeError, ValueError) as error:
        raise ValueError(wrong) from error
    if not (0 <= left < right <= W and 0 <= top < bottom <= H):
        raise ValueError(wrong)
    inside_HW = torch.zeros(H, W, dtype=torch.bool)
    inside_HW[top:bottom, left:right] = True
    return inside_HW


def resized(hole_HW: Tensor, shape: tuple[int, int]) -> Tensor:
    """The hole on an image of another size: true wherever any of it was."""
    return F.adaptive_max_pool2d(hole_HW[None, None].float(), shape)[0, 0] > 0


def kept_cells(hole_HW: Tensor, schedule: ScaleSchedule) -> list[Tensor]:
    """Which cells of each token map stay, bool (h, w).

    A cell of the finest map stays if none of its pixels is repainted. This map, resized bilinearly, decides for the
    others (above 0.5); those of at most three tokens stay entirely.
    """
    finest_11hw = 1 - F.adaptive_max_pool2d(hole_HW[None, None].float(), schedule.shapes[-1])
    kept = []
    for shape, area in zip(schedule.shapes, schedule.areas, strict=True):
        kept_hw = F.interpolate(finest_11hw, size=shape, mode="bilinear", align_corners=False)[0, 0] > 0.5
        kept.append(torch.ones_like(kept_hw) if area <= KEPT_WHOLE_TOKENS else kept_hw)
    return kept


def distance(hole_HW: Tensor) -> Tensor:
    """Steps (to any of eight neighbours) from each pixel to the nearest one of the hole, int (H, W); 0 inside it."""
    from scipy.ndimage import distance_transform_cdt

    return torch.from_numpy(distance_transform_cdt(~hole_HW.numpy(), metric="chessboard"))


class Drift(NamedTuple):
    """How far the pixels in a ring around the hole are from the image's own."""

    nearest: int  # the ring's distance from the hole in pixels, first
    farthest: int  # and last
    edited: float  # mean absolute change of 8-bit levels
    tokenizer: float  # the same by a round trip through the tokenizer alone


def drift(pixels_B3HW: Tensor, original_3HW: Tensor, restored_3HW: Tensor, hole_HW: Tensor) -> list[Drift]:
    """The change outside the hole by distance from it, in rings that double: 1, 2, 3-4, 5-8, ...

    Args:
        restored_3HW: the image after a round trip through the tokenizer.
    """
    steps_HW = distance(hole_HW)
    edited_HW = (pixels_B3HW - original_3HW).abs().mean((0, 1)) * 255
    tokenizer_HW = (restored_3HW - original_3HW).abs().mean(0) * 255
    rings, near, far, last = [], 1, 1, int(steps_HW.max())
    while near <= last:
        ring_HW = (steps_HW >= near) & (steps_HW <= far)
        found = (float(change_HW[ring_HW].mean()) for change_HW in (edited_HW, tokenizer_HW))
        rings.append(Drift(near, min(far, last), *found))
        near, far = far + 1, 2 * far
    return rings


def pasted(pixels_B3hw: Tensor, original: Image.Image, hole_HW: Tensor, feather: int) -> list[Image.Image]:
    """The image with the repainted hole in it, in its own size, mode and profile; in sRGB if it cannot be painted in.

    The weight of what was painted falls from 1 inside the hole to 0 beyond `feather` pixels from it; there the result
    is exactly the original, transparency included. What was painted is opaque.

    Args:
        pixels_B3hw: what was painted, of any size, in [0, 1].
        original: as `mvar.data.images.decoding.as_stored` returns it.
        hole_HW: of the original's size.
    """
    original = paintable(original)
    # Only the box around the hole and its feather changes: in a photo it may be small.
    (top, bottom), (left, right) = (_reach(hole_HW.any(axis), feather) for axis in (1, 0))
    before_UVC = np.atleast_3d(np.asarray(original.crop((left, top, right, bottom))))
    steps_UV = distance(hole_HW[top:bottom, left:right])
    weight_UV1 = (1 - steps_UV / (feather + 1)).clamp(min=0).numpy()[..., None]
    # An opaque layer of this weight over the image, by Porter and Duff's rule.
    alpha_UV1 = before_UVC[..., -1:] / np.float32(255) if original.mode in ("LA", "RGBA") else np.float32(1)
    after_UV1 = weight_UV1 + (1 - weight_UV1) * alpha_UV1
    blend_UV1 = weight_UV1 / np.where(weight_UV1 > 0, after_UV1, 1)
    (H, W), (h, w) = hole_HW.shape, pixels_B3hw.shape[-2:]
    source = (left * w / W, top * h / H, right * w / W, bottom * h / H)
    results = []
    for pixels_3hw in pixels_B3hw:
        planes = [
            Image.fromarray(plane_hw).resize((right - left, bottom - top), Image.Resampling.BICUBIC, source)
            for plane_hw in pixels_3hw.numpy()
        ]
        painted_3UV = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).clamp(0, 1)
        painted_UVC = like(to_images(painted_3UV[None])[0], original)
        mixed_UVC = blend_UV1 * painted_UVC + (1 - blend_UV1) * before_UVC[..., : painted_UVC.shape[-1]]
        if original.mode in ("LA", "RGBA"):
            mixed_UVC = np.concatenate([mixed_UVC, 255 * after_UV1], axis=-1)
        found_UVC = np.where(weight_UV1 > 0, mixed_UVC.round(), before_UVC).astype(before_UVC.dtype)
        result = original.copy()
        result.paste(Image.fromarray(found_UVC.squeeze(-1) if found_UVC.shape[-1] == 1 else found_UVC), (left, top))
        results.append(result)
    return results


def _reach(marked_N: Tensor, feather: int) -> tuple[int, int]:
    """The range of what is marked along one axis, widened by the feather."""
    marked = marked_N.nonzero()
    return max(0, int(marked[0]) - feather), min(len(marked_N), int(marked[-1]) + 1 + feather)
