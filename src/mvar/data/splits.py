"""The training and the validation images that `data` names: a folder, local shards or a stream of shards."""

import os
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Literal, Unpack

from mvar.data.images.folders import ImageFolder, contents, files_under, is_image, listing, natural
from mvar.data.images.layout import split_rank, splits
from mvar.data.loader import Loader, Slices, Source
from mvar.data.shards.local import Member, ShardSet, expand
from mvar.data.shards.stream import SCHEMES, Stream, StreamLoader, webdataset
from mvar.data.source import PixelSource, ReadOptions
from mvar.text import counted, some

VALIDATION_SHARE = 0.05
MOST_VALIDATION = 5000

Place = Path | list[Path]  # an image folder, or shards
Wanted = Literal["both", "training", "validation"]


def open_splits(
    data: str | Path,
    image_shape: tuple[int, int],
    *,
    val_data: str | Path | None = None,
    **options: Unpack[ReadOptions],
) -> tuple[PixelSource | Stream, PixelSource]:
    """Read a data set and return its training and validation images.

    A folder with `train/` and `val/` inside, or other names of SPLITS, or with shards of such names, holds both. Else
    5 % of each class are held out, at least one image where a class has two and at most 5,000 in all, chosen by the
    hash of the file name or the sample's key: the same images every time, in any copy of the set.

    The classes are those of the training images. A warning names those without validation images, and those that only
    validation has, whose images are left out.

    Args:
        data: an image folder; a folder of .tar shards, or their name with numbers in braces, train-{000..099}.tar; or a
            stream, http(s)://.../train-{000..099}.tar or pipe:COMMAND, which needs val_data.
        val_data: another folder or shards for validation, in place of those that `data` may hold.
        options: of `PixelSource.read`, for both parts; the seed also shuffles a stream.

    Raises:
        ValueError: the set cannot be used (see `ImageFolder.scan`, `ShardSet.scan` and `PixelSource.read`), it is
            unclear which of its folders or shards are for training, or nothing is left for one of the two parts.
    """
    named = f"data = {str(data)!r}"
    if is_stream(data):
        if val_data is None or is_stream(val_data):
            raise ValueError(f"{named}: is a stream; give val_data, a folder or local shards, for validation")
        webdataset()
        val_source = PixelSource.read(_scan(_for_validation(val_data), "val_data"), image_shape, **options)
        on_bad_image = options.get("on_bad_image", "skip")
        urls = expand(str(data))
        return Stream(urls, val_source.classes, val_source.views, on_bad_image), val_source
    parts = _located(data, "data", "both" if val_data is None else "training")
    train_place = parts.pop(0)
    train = _scan(train_place, "data")
    val_place, val_field = (parts.popitem()[1] if parts else None), "data"
    if val_data is not None:
        val_place, val_field = _for_validation(val_data), "val_data"
        places = (place if isinstance(place, list) else [place] for place in (train_place, val_place))
        if len({tuple(map(os.path.realpath, place)) for place in places}) == 1:
            text = f"val_data = {str(val_data)!r}: holds the training images themselves"
            warnings.warn(f"{text}; validation will not tell learning from memorising", stacklevel=2)
    val = val_place and _scan(val_place, val_field, train.classes)
    source = PixelSource.read(train, image_shape, **options)
    if val:
        val_source = PixelSource.read(val, image_shape, **options)
    else:
        held_out = _held_out(source, train.root)
        if not held_out or len(held_out) == len(source):
            part, left = "training" if held_out else "validation", counted(len(source), "readable image")
            raise ValueError(f"{named}: leaves no {part} images out of {left}; add images")
        val_source = source.select(sorted(held_out))
        source = source.select([i for i in range(len(source)) if i not in held_out])
    _warn_of_missing(set(train.labels), source, "training images that can be used", named)
    _warn_of_missing({*source.labels.tolist()}, val_source, "validation images, trained all the same", named)
    return source, val_source


def validation_images(data: str | Path, classes: list[str] | None = None) -> ImageFolder | ShardSet:
    """The validation images of a set, or all images of one that is not split; unlike `open_splits`, reads no others.

    `classes` and errors are those of `ImageFolder.scan`.
    """
    parts = _located(data, "data", "both")
    return _scan(parts[max(parts)], "data", classes)


def is_stream(data: str | Path) -> bool:
    """Whether this names streamed shards, not files."""
    return str(data).startswith(SCHEMES)


def open_loader(source: Source | Stream, slices: Slices, seed: int, workers: int = 2) -> Loader | StreamLoader:
    """The loader that fits the training images; a stream has a seed of its own."""
    if isinstance(source, Stream):
        return StreamLoader(source, slices, workers)
    return Loader(source, slices, seed, workers)


def _located(data: str | Path, field: str, wanted: Wanted) -> dict[int, Place]:
    """Where the wanted images of a set lie: under 0 those for training, under another number those for validation.

    A set that is not split is under 0; so is one without validation images when only those are wanted.
    """
    root, named = Path(data), f"{field} = {str(data)!r}"
    if _is_shard(root):
        return {0: [Path(name) for name in expand(str(data))]}
    with listing(named):
        if not root.is_dir():
            return {0: root}
        if shards := _shards(root):
            return _split_shards(shards, field, named, wanted)
        folders, files = contents(root)
        images, tars = sum(map(is_image, files)), sum(map(_is_shard, files))
        ranks = splits([folder.name for folder in folders])
        if images and not {0} < {*ranks.values()}:  # folders beside images, which `scan` refuses
            ranks = {}
        parts = _chosen({f: ranks[f.name] for f in folders if f.name in ranks}, field, named, wanted)
        for several in parts.values():
            if len(several) > 1:
                names = some([f"{folder.name}/" for folder in several])
                raise ValueError(f"{named}: has several folders for one part, {names}; move all but one away")
        places = {rank: _shards(folder) or folder for rank, (folder,) in parts.items()}
    used = [f"{folder.name}/" for (folder,) in parts.values()]
    unused = [f"{folder.name}/" for folder in folders if used and f"{folder.name}/" not in used]
    unused += [counted(images, "image")] if used and images else []
    unused += [counted(tars, "shard")] if tars else []
    _warn_of_unused(used or ["images"], unused, named)
    return places or {0: root}


def _shards(folder: Path) -> list[Path]:
    """The shards in a folder; none where there are image files too."""
    folders, files = contents(folder)
    shards = sorted(filter(_is_shard, files), key=natural)
    mixed = shards and any(map(is_image, chain(files, *map(files_under, folders))))
    return [] if mixed else shards


def _is_shard(path: Path) -> bool:
    return path.suffix.lower() == ".tar"


def _split_shards(shards: list[Path], field: str, named: str, wanted: Wanted) -> dict[int, Place]:
    """The shards of one folder as `_located` returns them."""
    ranks = {path: rank for path in shards if (rank := split_rank(path.stem)) is not None}
    if not any(ranks.values()):
        return {0: shards}
    if 0 not in ranks.values() and len(ranks) < len(shards):
        held_out, other = next(iter(ranks)), next(path for path in shards if path not in ranks)
        raise ValueError(
            f"{named}: {held_out.name!r} is for validation by its name, {other.name!r} has no name of a split; "
            "call the shards for training train-..., or give each part by its names, as data and val_data"
        )
    parts = _chosen(ranks, field, named, wanted)
    used = [path.name for several in parts.values() for path in several]
    _warn_of_unused(used, [path.name for path in shards if path.name not in used], named)
    return dict(parts)


def _chosen(ranks: Mapping[Path, int], field: str, named: str, wanted: Wanted) -> dict[int, list[Path]]:
    """The wanted places by the rank of their split: training's, and of the others the first that exists."""
    held_out = min(filter(None, ranks.values()), default=0)
    used = {"both": (0, held_out), "training": (0,), "validation": (held_out,)}[wanted]
    parts = {rank: several for rank in used if (several := [place for place, own in ranks.items() if own == rank])}
    if ranks and wanted != "validation" and 0 not in parts:
        only = some([str(place) for place, own in ranks.items() if own == held_out])
        raise ValueError(f"{named}: has validation images only ({only}); give those as {field} to train on them")
    return parts


def _for_validation(val_data: str | Path) -> Place:
    """The validation part of `val_data` if it has one, else all of it."""
    (place,) = _located(val_data, "val_data", "validation").values()
    return place


def _scan(place: Place, field: str, classes: list[str] | None = None) -> ImageFolder | ShardSet:
    if isinstance(place, list):
        return ShardSet.scan(place, field, classes)
    return ImageFolder.scan(place, field, classes)


def _warn_of_unused(used: Sequence[str], unused: Sequence[str], named: str) -> None:
    if unused:
        warnings.warn(f"{named}: uses {some(used)} and ignores {some(unused)}", stacklevel=4)


def _warn_of_missing(expected: set[int], source: PixelSource, what: str, named: str) -> None:
    """Name the expected classes that have no images."""
    names = [source.classes[label] for label in sorted(expected - {*source.labels.tolist()})] if source.classes else []
    if names:
        classes = counted(len(names), "class", "classes")
        warnings.warn(f"{named}: {classes} without {what}: {some(names)}", stacklevel=3)


def _held_out(source: PixelSource, root: Path) -> set[int]:
    """Indices of the images whose names hash lowest: the same share of every class."""
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
