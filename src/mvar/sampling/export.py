"""Samples as files: PNGs named by class and number, or the .npz that evaluation suites read.

Shapes: N images, B images of a batch, H W pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import numpy as np
import torch
from PIL import Image

from mvar.data.images.colour import in_srgb
from mvar.data.order import epoch_order
from mvar.data.workers import in_threads
from mvar.files import atomic_write, writable_file
from mvar.sampling.engine import SampleOutput
from mvar.sampling.labels import file_name

IMAGE_SUFFIXES = (".png", ".webp")
NPZ_SUFFIXES = (".npz",)
MIXED = 2**64  # in place of an epoch's number: an order that no epoch of training has
LARGEST_SET = 10_000_000  # images: the names of more would fill the memory
MOST_WEBP = 16_383  # pixels along a side


def target(path: str | Path, suffixes: Sequence[str], field: str, size: tuple[int, int] | None = None) -> Path:
    """The path of a file to be written, its suffix and folder checked before any long work.

    Args:
        field: the option that gave the path, for messages.
        size: (width, height) of the image to be written, where it is known.

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
    """Write one image as a lossless .png or .webp with its colour profile; raises as `target` does.

    WebP has no grey: such an image is stored as 8-bit RGB in sRGB.
    """
    path = target(path, IMAGE_SUFFIXES, field, image.size)
    if path.suffix.lower() == ".webp" and image.mode not in ("RGB", "RGBA"):
        image = in_srgb(image)
    profile = image.info.get("icc_profile")
    atomic_write(path, lambda partial: image.save(partial, icc_profile=profile, lossless=True, exact=True))
    return path


def save_pngs(out: SampleOutput, folder: str | Path, files: Sequence[str]) -> list[Path]:
    """Write one PNG per image under these names, replacing earlier files, and return their paths."""
    paths = [Path(folder, file) for file in files]

    def write(item: tuple[Path, Image.Image]) -> None:
        path, image = item
        atomic_write(path, image.save)

    for _ in in_threads(write, list(zip(paths, out.images, strict=True))):
        pass
    return paths


@contextmanager
def writing(device: torch.device) -> Iterator[Callable[[Callable[[], object]], None]]:
    """A function that does the work of writing a batch: for a GPU, while the next batch is drawn, one batch behind.

    On a CPU both would share the cores, so the work is done at once. What it raises is raised with the next batch, or
    at the end.
    """
    behind: list[Future[object]] = []

    def write(work: Callable[[], object]) -> None:
        if device.type == "cpu":
            work()
            return
        if behind:
            behind.pop().result()
        behind.append(pool.submit(work))

    with ThreadPoolExecutor(1) as pool:
        yield write
        if behind:
            behind.pop().result()


def save_npz(
    images: Callable[[Sequence[int]], Iterable[np.ndarray]],
    image_shape: Sequence[int],
    labels: Sequence[int],
    path: str | Path,
    seed: int = 0,
) -> Path:
    """Write arr_0, the images, uint8 (N, H, W, 3), arr_1, their labels, and index, their numbers, int64 (N,).

    ADM's evaluation suite computes the Inception score over runs of consecutive images, so the order is mixed: it
    depends on the number of images and the seed only.

    Args:
        images: yields the images of these numbers, each uint8 (H, W, 3).
        image_shape: (H, W).
        labels: each image's class index, by number.
    """
    path = target(path, NPZ_SUFFIXES, "npz")
    order_N = epoch_order(len(labels), seed, MIXED)
    described = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *image_shape, 3)}
    others = {"arr_1": np.asarray(labels, dtype=np.int64)[order_N], "index": order_N}

    def write(unfinished: Path) -> None:
        # A ZipInfo made here has a fixed date: the same images give the same bytes.
        with ZipFile(unfinished, "w") as archive:
            with archive.open(ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, described)
                for pixels_HW3 in images(order_N.tolist()):
                    file.write(pixels_HW3.tobytes())
            for name, array_N in others.items():
                with archive.open(ZipInfo(f"{name}.npy"), "w") as file:
                    np.lib.format.write_array(file, array_N)

    atomic_write(path, write)
    return path


def image_file(name: str, i: int) -> str:
    """The file name of image i, of this class."""
    return f"{file_name(name)}-{i:06d}.png"


def check_count(count: int) -> None:
    """Raise ValueError where more images are asked for than a set may have."""
    if count > LARGEST_SET:
        raise ValueError(f"per_class: asks for {count:,} images, a set has at most {LARGEST_SET:,}; ask for fewer")
