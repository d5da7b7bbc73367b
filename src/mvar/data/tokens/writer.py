"""Writing a token cache (see `mvar.data.tokens.cache`): shard by shard, so that it can be interrupted and resumed.

A shard depends on the settings only: any number of processes, interrupted or not, write the same bytes (see
`mvar.job`). Rank 0 writes the manifest once all shards are complete.

Shapes: B batch, L tokens of all scales, V views.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mvar.data.shards.stream import Stream
from mvar.data.splits import open_splits
from mvar.data.tokens.cache import (
    MANIFEST,
    SETTINGS,
    SPLITS,
    UNFINISHED,
    CacheSettings,
    Shard,
    TokenCache,
    checksum,
    is_cache,
    npy,
    token_dtype,
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
    on_bad_image: Literal["skip", "error"] = "skip",
    rank: int = 0,
    ranks: int = 1,
    **options: Any,
) -> bool:
    """Write this process's part of a cache, or what is missing of it; return whether there was anything to do.

    Args:
        data, on_bad_image: see `open_splits`.
        out: new or empty folder, or one with a cache of the same settings.
        tokenizer: in eval mode; it runs where its weights are.
        rank, ranks: which process of how many this is.
        options: views, resize_factor, augment, seed, dtype, batch_size and shard_images of `CacheSettings`.

    Raises:
        ValueError: bad settings or data, `out` is in use, or holds a cache of other settings; before any work.
        OSError: the disk is full, or other processes have stopped; what is complete is kept.
    """
    settings = CacheSettings(
        data=Path(data).resolve().name,
        tokenizer=tokenizer.fingerprint(),
        sides=tokenizer.config.sides,
        vocab_size=tokenizer.config.vocab_size,
        **options,
    )
    folder = Path(out)
    before = _what_is_there(folder, settings, data)
    files = before.files if before else {}
    if before and files and not (folder / UNFINISHED).exists() and not before.damaged():
        return False

    writable_folder(folder, "out")
    sources = _sources(data, tokenizer, settings, on_bad_image)
    listing = _listing(sources, data)
    contents = [source.images.fingerprint().encode() for source in sources.values()]
    settings = replace(
        settings,
        classes=sources["train"].images.classes,
        images={split: len(source.images) for split, source in sources.items()},
        listing=hashlib.sha256(b"".join([*listing.values(), *contents])).hexdigest(),
    )
    if before and before.settings.listing != settings.listing:
        now, then = (" + ".join(map(str, made.images.values())) for made in (settings, before.settings))
        raise ValueError(
            f"data = {data!r}: has {now} images, other ones than the cache {out!r} was started with ({then}); "
            "restore them, or give a new folder as out"
        )

    def is_complete(shard: Shard) -> bool:
        """Whether a shard is there, and as an older manifest lists it."""
        path = folder / shard.name
        return path.is_file() and (shard.name not in files or checksum(path) == files[shard.name])

    shards = settings.shards()
    job = Job(folder=folder, pieces=shards, noun="shards", name=lambda shard: shard.name, is_complete=is_complete)
    try:
        _write_missing(job, settings, sources, listing, rank, ranks)
    except TimeoutError:
        raise
    except OSError as error:
        said = f"cannot be written ({error.strerror or error}); fix it and run the same command again: it continues"
        raise OSError(f"out = {out!r}: {said}") from error
    return True


def _what_is_there(folder: Path, settings: CacheSettings, data: str) -> TokenCache | None:
    """The cache that was started with these settings; None where there is none."""
    named = f"out = {str(folder)!r}"
    if settings.views > 1 and settings.resize_factor == 1 and not settings.augment:
        fix = "give 1, or augment, or resize_factor above 1"
        raise ValueError(f"views = {settings.views}: all are the same where nothing is cropped or augmented; {fix}")
    if folder.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"{named}: lies inside data; name another")
    if is_cache(folder):
        before = TokenCache.read(folder, named)
        check_same(asdict(before.settings), asdict(settings), "out", folder, FROM_IMAGES)
        return before
    if folder.exists() and (not folder.is_dir() or any(entry.name[0] != "." for entry in folder.iterdir())):
        raise ValueError(f"{named}: already exists and is neither an empty folder nor a token cache; give a new name")
    return None


def _sources(
    data: str, tokenizer: Tokenizer, settings: CacheSettings, on_bad_image: Literal["skip", "error"]
) -> dict[str, EncodedImages]:
    """The images of both splits, encoded when they are asked for."""
    (height, width), size = tokenizer.config.image_shape, settings.batch_size
    train, val = open_splits(
        data,
        (height, width),
        resize_factor=settings.resize_factor,
        augment=settings.augment,
        seed=settings.seed,
        on_bad_image=on_bad_image,
    )
    if isinstance(train, Stream):
        raise ValueError(f"data = {str(data)!r}: is a stream, whose images have no numbers; copy its shards here")
    first_maps = 4 * min(size, len(train)) * height * width * tokenizer.config.channels  # bytes in float32
    check_memory(first_maps, f"batch_size = {min(size, len(train)):,}: so many images in the encoder", "give fewer")
    encoded = [EncodedImages(images=images, tokenizer=tokenizer, dtype=settings.dtype) for images in (train, val)]
    return dict(zip(SPLITS, encoded, strict=True))


def _listing(sources: Mapping[str, EncodedImages], data: str) -> dict[str, bytes]:
    """Contents of the files with labels and names."""
    contents = {}
    for split, source in sources.items():
        names = [os.path.relpath(path, data) for path in source.images.paths]
        contents[f"{split}-labels.npy"] = npy(source.images.labels.numpy())
        contents[f"{split}-names.json"] = json.dumps(names).encode()
    return contents


def _write_missing(
    job: Job[Shard],
    settings: CacheSettings,
    sources: Mapping[str, EncodedImages],
    listing: Mapping[str, bytes],
    rank: int,
    ranks: int,
) -> None:
    """Write this process's shards that are not complete; rank 0 then waits for the others and finishes the cache."""
    folder = job.folder

    def begin() -> None:  # only before work, as rank 0 deletes it at the end
        write_text(folder / UNFINISHED / SETTINGS, written_settings(settings, {}))

    def make(shard: Shard) -> None:
        begin()
        tokens = _tokens(shard, settings, sources[shard.split])
        atomic_write(folder / shard.name, partial(Path.write_bytes, data=npy(tokens)))
        print(f"{shard.name} written", file=sys.stderr, flush=True)

    if rank == 0:
        begin()
    job.make_missing(make, range(rank, len(job.pieces), ranks))
    if rank == 0:
        job.wait()
        for name, content in listing.items():
            atomic_write(folder / name, partial(Path.write_bytes, data=content))
        names = [*listing, *(shard.name for shard in job.pieces)]
        write_text(folder / MANIFEST, written_settings(settings, {name: checksum(folder / name) for name in names}))
        job.clean()
        shutil.rmtree(folder / UNFINISHED)


def _tokens(shard: Shard, settings: CacheSettings, source: EncodedImages) -> np.ndarray:
    """The tokens of a shard's images, (images, views, L)."""
    tokens = np.empty(settings.shape(shard), token_dtype(settings.vocab_size))
    batches = torch.arange(shard.start, shard.stop).split(settings.batch_size)
    for indices_B in track(batches, len(batches), shard.name):
        for view in range(tokens.shape[1]):
            epochs_B = torch.full_like(indices_B, view) if shard.split == "train" else None
            tokens[indices_B - shard.start, view] = source.tokens(indices_B, epochs_B).cpu()
    return tokens
