"""The training and the validation images that `data` names: a folder, local shards or a stream of shards."""

import unicodedata
from collections import defaultdict
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from mvar.data.images import ImageFolder, natural, visible_folders
from mvar.data.loader import Loader, Source
from mvar.data.shards import Member, ShardSet, expand
from mvar.data.source import CACHE_BYTES, PixelSource
from mvar.data.stream import SCHEMES, Stream, StreamLoader, webdataset

VALIDATION_FOLDERS = ("val", "test")  # the first that exists is used
VALIDATION_SHARE = 0.05
MOST_VALIDATION = 5000

Place = Path | list[Path]  # an image folder, or shards


def open_splits(
    data: str | Path,
    image_shape: tuple[int, int],
    *,
    val_data: str | Path | None = None,
    resize_factor: float = 1.125,
    seed: int = 0,
    on_bad_image: Literal["skip", "error"] = "skip",
    cache_bytes: int = CACHE_BYTES,
    field: str = "data",
) -> tuple[PixelSource | Stream, PixelSource]:
    """Read a data set and return its training and validation images.

    A folder with `train/` and `val/` (or `test/`) inside, or with `train*.tar` and `val*.tar` shards, holds both. Else
    5 % of each class are held out, at least one image where a class has two and at most 5,000 in all, chosen by the
    hash of the file name or the sample's key: the same images every time, in any copy of the set.

    Args:
        data: an image folder; a folder of .tar shards, or their name with numbers in braces, train-{000..099}.tar; or a
            stream, http(s)://.../train-{000..099}.tar or pipe:COMMAND, which needs val_data.
        val_data: another folder or shards for validation; all of `data` is then for training.
        seed: of the random crops, and of a stream's order.
        Other arguments as in `PixelSource.read`, for each of the two parts.

    Raises:
        ValueError: the set cannot be used (see `ImageFolder.scan`, `ShardSet.scan` and `PixelSource.read`), the two
            parts differ in their classes, or nothing is left for one of them.
    """
    named = f"{field} = {str(data)!r}"
    read = partial(
        PixelSource.read,
        image_shape=image_shape,
        resize_factor=resize_factor,
        seed=seed,
        on_bad_image=on_bad_image,
        cache_bytes=cache_bytes,
    )
    if is_stream(data):
        if val_data is None or is_stream(val_data):
            raise ValueError(f"{named}: is a stream; give val_data, a folder or local shards, for validation")
        webdataset()
        val_source = read(_scan(_of_validation(val_data), "val_data"))
        stream = Stream(
            urls=expand(str(data)),
            classes=val_source.classes,
            image_shape=image_shape,
            resize_factor=resize_factor,
            on_bad_image=on_bad_image,
            seed=seed,
        )
        return stream, val_source
    train_place, val_place = _located(data)
    train, val_field = _scan(train_place, field), field
    if val_data is not None:
        val_place, val_field = _of_validation(val_data), "val_data"
    if val_place is not None:
        val = _scan(val_place, val_field, train.classes)
        if train.classes != val.classes:
            raise ValueError(f"{named}: {_difference(train, val)}; give both the same classes")
        return read(train), read(val)
    source = read(train)
    held_out = _held_out(source, train.root)
    if not held_out or len(held_out) == len(source):
        part = "validation" if not held_out else "training"
        raise ValueError(f"{named}: leaves no {part} images out of {len(source)} readable ones; add images")
    return (
        source.select([i for i in range(len(source)) if i not in held_out]),
        source.select(sorted(held_out)),
    )


def is_stream(data: str | Path) -> bool:
    """Whether this names streamed shards, not files."""
    return str(data).startswith(SCHEMES)


def open_loader(
    source: Source | Stream,
    batch_size: int,
    seed: int,
    *,
    rank: int = 0,
    ranks: int = 1,
    parts: int = 1,
    workers: int = 2,
) -> Loader | StreamLoader:
    """The loader that fits the training images; arguments and errors are those of `Loader`."""
    if isinstance(source, Stream):
        return StreamLoader(source, batch_size, rank=rank, ranks=ranks, parts=parts, workers=workers)
    return Loader(source, batch_size, seed, rank=rank, ranks=ranks, parts=parts, workers=workers)


def _located(data: str | Path) -> tuple[Place, Place | None]:
    """Where the training images of a set lie, and its validation images if it says which those are."""
    root = Path(data)
    if root.suffix == ".tar":
        return [Path(name) for name in expand(str(data))], None
    inside = {entry.name: entry for entry in visible_folders(root)} if root.is_dir() else {}
    val_folder = next((inside[name] for name in VALIDATION_FOLDERS if name in inside), None)
    if "train" in inside and (val_folder or len(inside) == 1):
        return inside["train"], val_folder
    shards = [] if inside else sorted((path for path in root.glob("*.tar") if path.name[0] != "."), key=natural)
    by_part = {part: [path for path in shards if path.name.startswith(part)] for part in ("train", *VALIDATION_FOLDERS)}
    val_shards = next((by_part[name] for name in VALIDATION_FOLDERS if by_part[name]), None)
    if by_part["train"] and val_shards:
        return by_part["train"], val_shards
    return shards or root, None


def _of_validation(val_data: str | Path) -> Place:
    """What `val_data` stands for: its own validation part if it has one, else all of it."""
    whole, val_place = _located(val_data)
    return whole if val_place is None else val_place


def _scan(place: Place, field: str, classes: list[str] | None = None) -> ImageFolder | ShardSet:
    """The images of a folder, or of shards, whose labels then refer to these classes."""
    return ShardSet.scan(place, field, classes) if isinstance(place, list) else ImageFolder.scan(place, field)


def _held_out(source: PixelSource, root: Path) -> set[int]:
    """Indices of the images whose name hashes lowest: a share of every class."""
    by_class: dict[int, list[tuple[bytes, int]]] = defaultdict(list)
    for i, (path, label) in enumerate(zip(source.paths, source.labels.tolist(), strict=True)):
        inside = path.key if isinstance(path, Member) else path.relative_to(root).as_posix()
        name = unicodedata.normalize("NFC", inside)
        by_class[label].append((blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), i))
    share = min(VALIDATION_SHARE, MOST_VALIDATION / len(source))
    chosen = []
    for ranked in by_class.values():
        if len(ranked) > 1:
            chosen += sorted(ranked)[: max(1, int(share * len(ranked)))]
    return {i for _, i in sorted(chosen)[:MOST_VALIDATION]}


def _difference(train: ImageFolder | ShardSet, val: ImageFolder | ShardSet) -> str:
    parts = [
        f"only {here.root.name}/ has {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        for here, other in ((train, val), (val, train))
        if (missing := [name for name in here.classes if name not in other.classes])
    ]
    return "; ".join(parts)
