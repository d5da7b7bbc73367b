"""Samples as files: PNGs named by class and index, or the .npz that evaluation suites read."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mvar.data.colour import in_srgb
from mvar.files import atomic_write, writable_folder
from mvar.sampling.engine import SampleOutput

IMAGE_SUFFIXES = (".png", ".webp")
NPZ_SUFFIXES = (".npz",)
MOST_WEBP = 16_383  # pixels a side


def target(path: str | Path, suffixes: Sequence[str], field: str, size: tuple[int, int] | None = None) -> Path:
    """The path of a file to be written, its folder made and its suffix checked before any long work.

    Args:
        size: width and height of the image to be written, where they are known.

    Raises:
        ValueError: one line with the field, its value and the fix.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{field} = {str(path)!r}: give a name that ends in {' or '.join(suffixes)}")
    if size is not None and path.suffix.lower() == ".webp" and max(size) > MOST_WEBP:
        raise ValueError(
            f"{field} = {str(path)!r}: {size[0]}x{size[1]} pixels, a WebP has at most {MOST_WEBP} a side; give a .png"
        )
    if path.is_dir():
        raise ValueError(f"{field} = {str(path)!r}: is a folder; give a file's name")
    writable_folder(path.parent, field)
    return path


def save_image(image: Image.Image, path: str | Path, field: str = "out") -> Path:
    """Write one image as .png or .webp, without loss and with its colour profile; raises as `target` does.

    WebP has no grey, which is stored as 8-bit RGB in sRGB.
    """
    path = target(path, IMAGE_SUFFIXES, field, image.size)
    if path.suffix.lower() == ".webp" and image.mode not in ("RGB", "RGBA"):
        image = in_srgb(image)
    profile = image.info.get("icc_profile")
    atomic_write(path, lambda partial: image.save(partial, icc_profile=profile, lossless=True, exact=True))
    return path


def save_pngs(out: SampleOutput, folder: str | Path, names: Sequence[str], index: Sequence[int]) -> list[Path]:
    """Write one PNG for each image, `<class name>-<index>.png`; a file of that name is replaced.

    Args:
        out: the samples.
        folder: made where it is missing.
        names: each image's class name; characters that file systems dislike become "_".
        index: each image's number.

    Returns:
        The paths, in order.

    Raises:
        ValueError: names or index do not fit the images, two files would have one name, or the folder is not writable.
    """
    images = out.images
    if not len(names) == len(index) == len(images):
        raise ValueError(f"{len(images)} images, {len(names)} names, {len(index)} indices: give one of each an image")
    folder = writable_folder(folder, "out_dir")
    paths = [folder / f"{file_name(name)}-{i:06d}.png" for name, i in zip(names, index, strict=True)]
    if len(set(paths)) < len(paths):
        raise ValueError("two images would have the same class name and index: give each image its own index")
    for path, image in zip(paths, images, strict=True):
        atomic_write(path, image.save)
    return paths


def save_npz(pixels_BHW3: np.ndarray, labels: Sequence[int], path: str | Path) -> Path:
    """Write the .npz of ADM's evaluation suite: arr_0 the uint8 images (B, H, W, 3), arr_1 int64 labels.

    Raises:
        ValueError: not one label for each image; or as of `target`.
    """
    path = target(path, NPZ_SUFFIXES, "npz")
    if len(labels) != len(pixels_BHW3):
        raise ValueError(f"{len(labels)} labels for {len(pixels_BHW3)} images: give one for each")
    arrays = pixels_BHW3, np.asarray(labels, dtype=np.int64)
    atomic_write(path, lambda partial: np.savez(partial, *arrays))
    return path


def file_name(name: str) -> str:
    """A class name as part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "image"


def beside(images: str | Path, name: str) -> Path:
    """Where a file of this name about some images lies: in their folder, or as a.NAME beside a.npz."""
    images = Path(images)
    return images.with_suffix(f".{name}") if images.suffix.lower() == ".npz" else images / name
