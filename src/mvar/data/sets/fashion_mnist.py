"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017) as image folders.

60,000 training and 10,000 test images, 28x28 grey, 10 classes, MIT licence; the original gzipped IDX files come from
the Debian package dataset-fashion-mnist. The images are written at 32x32, framed with two black pixels: enlarging them
would lose something.
"""

import gzip
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

from mvar.data.sets.fetching import fetched
from mvar.data.workers import in_threads
from mvar.files import atomic_folder
from mvar.progress import track

# In the order of the official labels 0 to 9; an image folder numbers its classes by name instead.
FASHION_MNIST_CLASSES = (
    *("T-shirt-top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle-boot"),
)
FILES = {
    f"{split}_{kind}": f"{start}-{kind}-idx{rank}-ubyte.gz"
    for split, start in (("train", "train"), ("val", "t10k"))
    for kind, rank in (("images", 3), ("labels", 1))
}
FRAME = 2  # black pixels on every side of the written images
PACKAGE = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def fashion_mnist(out: str, source: str | None = None) -> None:
    """Write Fashion-MNIST as out/train/<class>/*.png and out/val/<class>/*.png, 32x32 grey.

    Args:
        source: folder with the four original .gz files; None takes the installed Debian package, or downloads it.

    Raises:
        ValueError: `out` is in use or cannot be written, or the files are not found or damaged.
    """

    def write(folder: Path) -> None:
        arrays = fashion_mnist_arrays(source)
        jobs = []
        for split in ("train", "val"):
            for name in FASHION_MNIST_CLASSES:
                (folder / split / name).mkdir(parents=True)
            for i, label in enumerate(arrays[f"{split}_labels"]):
                path = folder / split / FASHION_MNIST_CLASSES[label] / f"{i:05d}.png"
                jobs.append((np.pad(arrays[f"{split}_images"][i], FRAME), path))
        with closing(in_threads(lambda job: Image.fromarray(job[0]).save(job[1]), jobs)) as saved:
            for _ in track(saved, len(jobs), "writing images"):
                pass

    atomic_folder(out, write)


def fashion_mnist_arrays(source: str | None = None) -> dict[str, np.ndarray]:
    """The four arrays: {train,val}_images uint8 (n, 28, 28) and {train,val}_labels uint8 (n,), official numbers.

    Arguments and errors are those of `fashion_mnist`.
    """
    if source is None and not INSTALLED.is_dir():
        named = f"source = None: the Debian package {PACKAGE} is not installed and"
        fix = f"run apt-get update, or give --source DIR with the four files {', '.join(FILES.values())}"
        with fetched('apt-get download "$1" && dpkg -x *.deb .', PACKAGE, named, fix) as folder:
            return fashion_mnist_arrays(str(folder / INSTALLED.relative_to("/")))
    folder = INSTALLED if source is None else Path(source)
    return {key: _read_idx(folder / name, (28, 28) if key.endswith("images") else ()) for key, name in FILES.items()}


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes, (n, *shape)."""
    try:
        content = gzip.decompress(path.read_bytes())
        array = np.frombuffer(content, np.uint8, offset=8 + 4 * len(shape)).reshape(-1, *shape)
        if len(array) != (n := int.from_bytes(content[4:8])):
            raise ValueError(f"{len(array)} items of shape {shape} instead of {n}")
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(
            f"source: {str(path)!r} is missing or damaged ({error}); give the four original files"
        ) from error
    return array
