"""Writing a token cache (see `mvar.data.tokens.cache`): shard by shard, so that it can be interrupted and resumed.

A shard depends on the settings only: any number of processes, interrupted or not, write the same bytes (see
`mvar.job`). Rank 0 writes the manifest once all shards are complete.

Shapes: B batch, L tokens of all scales, V views.
"""

import hashlib
import io
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mvar.data.augment import Augmentation, vary
from mvar.data.shards.stream import Stream
from mvar.data.splits import open_splits
from mvar.data.tokens.cache import (
    MANIFEST,
    SETTINGS,
    SPLITS,
    UNFINISHED,
    CacheSettings,
    Checksum,
    Shard,
    TokenCache,
    is_cache,
    read_settings,
    written_settings,
)
from mvar.data.tokens.encoded import EncodedImages
from mvar.files import atomic_write, writable_folder, write_text
from mvar.job import Job, check_same
from mvar.machine import check_memory
from mvar.progress import track
from mvar.tokenizer.network import Tokenizer

FROM_IMAGES = ("classes", "images", "listing")  # settings that are known once the images are read


def write_cache(
    data: str,
    out: str,
    tokenizer: Tokenizer,
    *,
    views: int = 1,
    resize_factor: float = 1.0,
    augment: Sequence[Augmentation] = (),
    shard_images: int = 10_000,
    dtype: Literal["float32", "bfloat16"] = "float32",
    batch_size: int = 64,
    on_bad_image: Literal["skip", "error"] = "skip",
    seed: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> bool:
    """Write this process's part of a cache, or what is missing of it.

    Args:
        data: folder of images, see `open_splits`.
        out: new or empty folder, or one with a cache of the same settings.
        tokenizer: in eval mode; it runs where its weights are.
        views: of each training image; view v is what training sees of it in epoch v.
        resize_factor: size before cropping over the size after it.
        augment: what else is changed at random; see `mvar.data.views.Views`.
        shard_images: images of a shard.
        dtype: of the encoder's products; bfloat16 changes some of the tokens.
        batch_size: images encoded at once.
        on_bad_image: "skip" leaves unreadable images out with one warning for all, "error" raises it.
        seed: of the views.
        rank, ranks: which process of how many this is.

    Returns:
        Whether there was anything to do.

    Raises:
        ValueError: bad settings or data, `out` is in use, or holds a cache of other settings; before any work.
        OSError: the disk is full, or other processes have stopped; what is finished is kept.
    """
    settings = CacheSettings(
        data=Path(data).resolve().name,
        tokenizer=tokenizer.fingerprint(),
        sides=tokenizer.config.sides,
        vocab_size=tokenizer.config.vocab_size,
        views=views,
        resize_factor=resize_factor,
        augment=list(augment),
        seed=seed,
        dtype=dtype,
        batch_size=batch_size,
        shard_images=shard_images,
    )
    _check(settings, data, out)
    folder = Path(out)
    before, files = _what_is_there(folder, settings)
    if before and files and not (folder / UNFINISHED).exists() and not TokenCache(folder, before, files).damage():
        return False

    writable_folder(folder, "out")
    train, val = open_splits(
        data,
        tokenizer.config.image_shape,
        resize_factor=resize_factor,
        augment=augment,
        seed=seed,
        on_bad_image=on_bad_image,
    )
    if isinstance(train, Stream):
        raise ValueError(f"data = {str(data)!r}: is a stream, whose images have no numbers; copy its shards here")
    height, width = tokenizer.config.image_shape
    images = min(batch_size, len(train))
    first_maps = 4 * images * height * width * tokenizer.config.channels  # bytes in float32
    check_memory(first_maps, f"batch_size = {images:,}: so many images in the encoder", "give fewer")
    encoded = [EncodedImages(images=images, tokenizer=tokenizer, dtype=dtype) for images in (train, val)]
    sources = dict(zip(SPLITS, encoded, strict=True))
    listing, contents = _listing(sources, data), [images.fingerprint().encode() for images in (train, val)]
    settings = replace(
        settings,
        classes=sources["train"].classes,
        images={split: len(source) for split, source in sources.items()},
        listing=hashlib.sha256(b"".join([*listing.values(), *contents])).hexdigest(),
    )
    if before and before.listing != settings.listing:
        raise ValueError(
            f"data = {data!r}: has {_counted(settings)} images, other ones than the cache {out!r} was begun with "
            f"({_counted(before)}); restore them, or give a new folder as out"
        )
    try:
        found = _Found(folder, settings, files)
        shards = settings.shards()
        own = shards[rank::ranks]
        job = Job(
            folder=folder, pieces=shards, noun="shards", name=lambda shard: shard.name, is_complete=found.is_complete
        )
        if rank == 0:
            found.begin()
        job.make_missing(lambda shard: _make_shard(found, shard, sources[shard.split], own), rank, ranks)
        if rank == 0:
            job.wait()
            _finish(found, listing)
            job.clean()
            shutil.rmtree(folder / UNFINISHED)
    except TimeoutError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"out = {out!r}: cannot be written ({reason}); fix it and run the same command again: it continues"
        ) from error
    return True


class _Found:
    """What the folder holds: shards are known by their notes in .unfinished, else by an older manifest."""

    def __init__(self, folder: Path, settings: CacheSettings, files: Mapping[str, Checksum]) -> None:
        self.folder, self.settings, self.files = folder, settings, files
        self.whole: dict[str, Checksum] = {}

    def begin(self) -> None:
        """Say with which settings the cache is made.

        Only for who has work to do: where process 0 has finished, every shard is found whole.
        """
        write_text(self.folder / UNFINISHED / SETTINGS, written_settings(self.settings))

    def is_complete(self, shard: Shard) -> bool:
        """Whether a shard is there and whole; one found whole is not read again."""
        if shard.name not in self.whole:
            checksum = self._noted(shard) or self.files.get(shard.name) or self._listed(shard)
            if checksum is None or checksum.damage(self.folder / shard.name):
                return False
            self.whole[shard.name] = checksum
        return True

    def add(self, shard: Shard, checksum: Checksum) -> None:
        """Note a shard that was written."""
        write_text(self._note(shard), json.dumps(checksum._asdict()))
        self.whole[shard.name] = checksum

    def _noted(self, shard: Shard) -> Checksum | None:
        try:
            return Checksum(**json.loads(self._note(shard).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _listed(self, shard: Shard) -> Checksum | None:
        """What a manifest says that process 0 has written since this process began."""
        if (self.folder / UNFINISHED).exists() or not is_cache(self.folder):
            return None
        settings, files = read_settings(self.folder, f"out = {str(self.folder)!r}")
        return files.get(shard.name) if settings == self.settings else None

    def _note(self, shard: Shard) -> Path:
        return self.folder / UNFINISHED / f"{shard.name}.json"


def _check(settings: CacheSettings, data: str, out: str) -> None:
    if not vary(settings.resize_factor, settings.augment) and settings.views > 1:
        fix = "give 1, or augment, or resize_factor above 1"
        raise ValueError(f"views = {settings.views}: all are the same where nothing is cropped or augmented; {fix}")
    if Path(out).resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"out = {out!r}: lies inside data; name another")


def _what_is_there(folder: Path, settings: CacheSettings) -> tuple[CacheSettings | None, dict[str, Checksum]]:
    """Settings and files of a cache that was begun with the same settings; None and nothing where there is no cache."""
    named = f"out = {str(folder)!r}"
    if is_cache(folder):
        before, files = read_settings(folder, named)
        check_same(asdict(before), asdict(settings), "out", folder, FROM_IMAGES)
        return before, files
    if folder.exists() and (not folder.is_dir() or any(entry.name[0] != "." for entry in folder.iterdir())):
        raise ValueError(f"{named}: already exists and is neither an empty folder nor a token cache; give a new name")
    return None, {}


def _counted(settings: CacheSettings) -> str:
    return " + ".join(str(n) for n in settings.images.values())


def _listing(sources: Mapping[str, EncodedImages], data: str) -> dict[str, bytes]:
    """Contents of the files with labels and names."""
    contents = {}
    for split, source in sources.items():
        labels = io.BytesIO()
        np.save(labels, source.labels.numpy())
        names = [os.path.relpath(source.name(i), data) for i in range(len(source))]
        contents[f"{split}-labels.npy"] = labels.getvalue()
        contents[f"{split}-names.json"] = json.dumps(names).encode()
    return contents


def _make_shard(found: _Found, shard: Shard, source: EncodedImages, own: Sequence[Shard]) -> None:
    """Write one of this process's `own` shards."""
    found.begin()
    start = time.perf_counter()
    found.add(shard, _write(found.folder / shard.name, _chunks(shard, found.settings, source)))
    speed = (shard.stop - shard.start) / (time.perf_counter() - start)
    done = f"{own.index(shard) + 1} of {len(own)}"
    print(f"{shard.name} written, {speed:.0f} images/s ({done})", file=sys.stderr, flush=True)


def _chunks(shard: Shard, settings: CacheSettings, source: EncodedImages) -> Iterator[bytes]:
    """The bytes of a shard's .npy file."""
    shape, dtype = settings.shape(shard), settings.token_dtype
    header = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, described)
    yield header.getvalue()
    batches = torch.arange(shard.start, shard.stop).split(settings.batch_size)
    for indices_B in track(batches, len(batches), shard.name):
        epochs = [torch.full_like(indices_B, v) for v in range(shape[1])] if shard.split == "train" else [None]
        tokens_BVL = torch.stack([source.batch(indices_B, epochs_B)[0] for epochs_B in epochs], dim=1)
        yield tokens_BVL.cpu().numpy().astype(dtype).tobytes()


def _write(path: Path, chunks: Iterable[bytes]) -> Checksum:
    """Write a file, aside and then renamed, and return what it must be."""
    digest, size = hashlib.sha256(), 0

    def write(partial: Path) -> None:
        nonlocal size
        with open(partial, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)

    atomic_write(path, write)
    return Checksum(size, digest.hexdigest())


def _finish(found: _Found, listing: Mapping[str, bytes]) -> None:
    """Write labels, names and the manifest."""
    folder, settings = found.folder, found.settings
    files = {name: _write(folder / name, [content]) for name, content in listing.items()}
    write_text(folder / MANIFEST, written_settings(settings, {**files, **found.whole}))
