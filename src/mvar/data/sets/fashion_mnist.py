"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017) as image folders.

60,000 training and 10,000 test images, 28x28 grey, 10 classes, MIT licence; the original gzipped IDX files come from
the Debian package dataset-fashion-mnist. The images are written at 32x32, framed with two black pixels: enlarging them
would lose something.
"""

import gzip
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

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
        out: a new or empty folder; it appears only when complete.
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

    Args:
        source: as in `fashion_mnist`.

    Raises:
        ValueError: a file is missing, damaged, or does not fit its sibling.
    """
    with _folder(source) as folder:
        if missing := [name for name in FILES.values() if not (folder / name).is_file()]:
            raise ValueError(f"source = {str(folder)!r}: lacks {', '.join(missing)}; put the four files there")
        arrays = {
            key: _read_idx(folder / name, (28, 28) if key.endswith("images") else ()) for key, name in FILES.items()
        }
    for split in ("train", "val"):
        images, labels = len(arrays[f"{split}_images"]), arrays[f"{split}_labels"]
        if images != len(labels) or labels.max(initial=0) >= len(FASHION_MNIST_CLASSES):
            name = FILES[f"{split}_labels"]
            raise ValueError(
                f"source = {str(folder)!r}: {name} does not label {images} images from 0 to 9; get it again"
            )
    return arrays


@contextmanager
def _folder(source: str | None) -> Iterator[Path]:
    """The folder with the four files: `source`, the installed one, or a download that is deleted after use."""
    if source is not None or INSTALLED.is_dir():
        yield Path(source) if source is not None else INSTALLED
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subprocess.run(["apt-get", "download", PACKAGE], cwd=scratch, check=True, capture_output=True, timeout=600)
            package = next(Path(scratch).glob("*.deb"))
            subprocess.run(["dpkg", "-x", package, "unpacked"], cwd=scratch, check=True, capture_output=True)
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
            raise ValueError(
                f"source = None: the Debian package {PACKAGE} is not installed and could not be downloaded "
                f"({said[-1] if said else error}); run apt-get update, or give --source DIR with the four files "
                f"{', '.join(FILES.values())}"
            ) from error
        yield Path(scratch, "unpacked", INSTALLED.relative_to("/"))


def _read_idx(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes, (n, *shape)."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"source: {str(path)!r} is not a whole gzip file ({error}); get it again") from error
    rank = 1 + len(shape)
    start = 4 * (1 + rank)
    header = np.frombuffer(content[:start].ljust(start, b"\0"), dtype=">u4").tolist()
    expected = [0x0800 + rank, header[1], *shape]  # 8: unsigned bytes
    if header != expected or len(content) - start != np.prod(header[1:], dtype=np.int64):
        raise ValueError(f"source: {str(path)!r} is not IDX data of shape {('n', *shape)}; get it again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(header[1:])
