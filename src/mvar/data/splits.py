"""The training and the validation images of one data folder."""

import unicodedata
from collections import defaultdict
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from mvar.data.images import ImageFolder, visible_folders
from mvar.data.source import CACHE_BYTES, PixelSource

VALIDATION_FOLDERS = ("val", "test")  # the first that exists is used
VALIDATION_SHARE = 0.05
MOST_VALIDATION = 5000


def open_splits(
    folder: str | Path,
    image_shape: tuple[int, int],
    *,
    resize_factor: float = 1.125,
    on_bad_image: Literal["skip", "error"] = "skip",
    cache_bytes: int = CACHE_BYTES,
    field: str = "data",
) -> tuple[PixelSource, PixelSource]:
    """Read a data folder and return its training and validation images.

    With `train/` and `val/` (or `test/`) inside, those are used. Else 5 % of each class are held out, at least one
    image where a class has two and at most 5,000 in all, chosen by the hash of the file name: the same images every
    time, in any copy of the folder. Other arguments as in `PixelSource.read`.

    Raises:
        ValueError: the folder cannot be used (see `ImageFolder.scan` and `PixelSource.read`), `train/` and the
            validation folder differ in their classes, or nothing is left for one of the two.
    """
    named = f"{field} = {str(folder)!r}"
    root = Path(folder)
    inside = {entry.name: entry for entry in visible_folders(root)} if root.is_dir() else {}
    val_folder = next((inside[name] for name in VALIDATION_FOLDERS if name in inside), None)
    if "train" in inside and val_folder:
        train, val = ImageFolder.scan(inside["train"], field), ImageFolder.scan(val_folder, field)
        if train.classes != val.classes:
            raise ValueError(f"{named}: {_difference(train, val)}; give both the same class folders")
        whole = ImageFolder(root, train.paths + val.paths, train.labels + val.labels, train.classes)
    else:
        val_folder = None
        whole = ImageFolder.scan(inside["train"] if list(inside) == ["train"] else root, field)

    source = PixelSource.read(
        whole, image_shape, resize_factor=resize_factor, on_bad_image=on_bad_image, cache_bytes=cache_bytes
    )
    if val_folder:
        held_out = {i for i, path in enumerate(source.paths) if path.is_relative_to(val_folder)}
    else:
        held_out = _held_out(source, whole.root)
    if not held_out or len(held_out) == len(source):
        part = "validation" if not held_out else "training"
        raise ValueError(f"{named}: leaves no {part} images out of {len(source)} readable ones; add images")
    return (
        source.select([i for i in range(len(source)) if i not in held_out]),
        source.select(sorted(held_out)),
    )


def _held_out(source: PixelSource, root: Path) -> set[int]:
    """Indices of the images whose name hashes lowest: a share of every class."""
    by_class: dict[int, list[tuple[bytes, int]]] = defaultdict(list)
    for i, (path, label) in enumerate(zip(source.paths, source.labels.tolist(), strict=True)):
        name = unicodedata.normalize("NFC", path.relative_to(root).as_posix())
        by_class[label].append((blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), i))
    share = min(VALIDATION_SHARE, MOST_VALIDATION / len(source))
    chosen = []
    for ranked in by_class.values():
        if len(ranked) > 1:
            chosen += sorted(ranked)[: max(1, int(share * len(ranked)))]
    return {i for _, i in sorted(chosen)[:MOST_VALIDATION]}


def _difference(train: ImageFolder, val: ImageFolder) -> str:
    parts = [
        f"only {here.root.name}/ has {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        for here, other in ((train, val), (val, train))
        if (missing := [name for name in here.classes if name not in other.classes])
    ]
    return "; ".join(parts)
