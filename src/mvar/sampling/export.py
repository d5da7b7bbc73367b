"""Samples as files: PNGs named by class and number, or the .npz that evaluation suites read.

Shapes: N images, B images of a batch, H W pixels.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from PIL import Image

from mvar.data.images.colour import in_srgb
from mvar.data.order import epoch_order
from mvar.files import atomic_write, read_bounded, writable_file, writable_folder, write_text
from mvar.sampling.engine import SampleOutput
from mvar.text import clean

IMAGE_SUFFIXES = (".png", ".webp")
NPZ_SUFFIXES = (".npz",)
MIXED = 2**64  # stands for an epoch that no training has: an order of its own
LARGEST_SET = 10_000_000  # images: the names of more would fill the memory
MOST_WRITTEN = 1000 * LARGEST_SET  # bytes of a JSON file about a set: an image has some 150
MOST_BYTES = 200  # of a class's name in a file's, of which file systems take 255
MOST_WEBP = 16_383  # pixels a side


def target(path: str | Path, suffixes: Sequence[str], field: str, size: tuple[int, int] | None = None) -> Path:
    """The path of a file to be written, its suffix and its folder checked before any long work.

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
    return writable_file(path, field)


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


def save_pngs(out: SampleOutput, folder: str | Path, files: Sequence[str]) -> list[Path]:
    """Write one PNG for each image; a file of its name is replaced.

    Args:
        out: the samples.
        folder: made where it is missing.
        files: each image's name there, see `image_file`.

    Returns:
        The paths, in order.

    Raises:
        ValueError: not one name for each image, names that are the same but for letter case, which is one file on many
            systems, or a folder that is not writable.
    """
    images = out.images
    if len(files) != len(images):
        raise ValueError(f"{len(images)} images, {len(files)} names: give one for each")
    if len({file.casefold() for file in files}) < len(files):
        raise ValueError("two images would have the same name: number each")
    folder = writable_folder(folder, "out_dir")
    paths = [folder / file for file in files]
    for path, image in zip(paths, images, strict=True):
        atomic_write(path, image.save)
    return paths


def save_npz(
    images: Callable[[Sequence[int]], Iterable[np.ndarray]],
    image_shape: Sequence[int],
    labels: Sequence[int],
    path: str | Path,
    seed: int = 0,
) -> Path:
    """Write the .npz of ADM's evaluation suite, in an order mixed by the seed.

    That suite computes the Inception score over consecutive images, which class by class would hold a few classes only.
    The order depends on the number of images and the seed alone.

    Args:
        images: gives those of these numbers one after another, each uint8 (H, W, 3).
        image_shape: (H, W).
        labels: class index of each image, by number.

    Writes:
        arr_0: the images, uint8 (N, H, W, 3).
        arr_1: their labels, int64 (N,).
        index: their numbers, int64 (N,).

    Raises:
        ValueError: see `target`.
    """
    path = target(path, NPZ_SUFFIXES, "npz")
    order_N = epoch_order(len(labels), seed, MIXED)
    described = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *image_shape, 3)}

    def write(unfinished: Path) -> None:
        # A ZipInfo of its own has a fixed date: the same images give the same bytes.
        with ZipFile(unfinished, "w") as archive:
            with archive.open(ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, described)
                for pixels_HW3 in images(order_N.tolist()):
                    file.write(pixels_HW3.tobytes())
            for name, array_N in (("arr_1", np.asarray(labels, dtype=np.int64)[order_N]), ("index", order_N)):
                with archive.open(ZipInfo(f"{name}.npy"), "w") as file:
                    np.lib.format.write_array(file, array_N)

    atomic_write(path, write)
    return path


def image_file(name: str, i: int) -> str:
    """The name of the file of image i of a class."""
    return f"{file_name(name)}-{i:06d}.png"


def file_name(name: str) -> str:
    """A class name as part of a file's name: characters that file systems dislike become "_", and it is cut."""
    kept = re.sub(r"[^\w.-]+", "_", clean(name)).encode()[:MOST_BYTES].decode(errors="ignore")
    return kept.strip("._") or "image"


def beside(images: str | Path, name: str) -> Path:
    """Where a file of this name about some images lies: in their folder, or as a.NAME beside a.npz."""
    images = Path(images)
    return images.with_suffix(f".{name}") if images.suffix.lower() == ".npz" else images / name


def write_beside(images: str | Path, name: str, content: Mapping[str, Any]) -> None:
    """Write a JSON file about some images, see `beside`."""
    write_text(beside(images, name), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_beside(images: str | Path, name: str, is_ours: Callable[[Any], bool]) -> dict[str, Any] | None:
    """Read a JSON file about some images; None where there is none.

    Raises:
        ValueError: one line: it is damaged, too large, not a regular file, or holds something else.
    """
    path = beside(images, name)
    try:
        path.lstat()  # tells a missing file from one that is refused
        found: dict[str, Any] = json.loads(read_bounded(path, MOST_WRITTEN))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); remove it if the images are not mvar's") from error
    if not is_ours(found):
        raise ValueError(f"{path}: was not written by mvar; remove it if the images are not mvar's")
    return found


def check_count(count: int) -> None:
    """Raise ValueError where more images are asked for than a set has at most."""
    if count > LARGEST_SET:
        raise ValueError(f"per_class: asks for {count:,} images, a set has at most {LARGEST_SET:,}; give less")
