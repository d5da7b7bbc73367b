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
    """Write this process's part of a cache, or what is missing of it; return whether there was anything to do.

    Args:
        data: folder of images, see `open_splits`.
        out: new or empty folder, or one with a cache of the same settings.
        tokenizer: in eval mode; it runs where its weights are.
        views, resize_factor, augment, shard_images, dtype, batch_size, seed: see `CacheSettings`.
        on_bad_image: "skip" leaves unreadable images out with one warning for all, "error" raises it.
        rank, ranks: which process of how many this is.

    Raises:
        ValueError: bad settings or data, `out` is in use, or holds a cache of other settings; before any work.
        OSError: the disk is full, or other processes have stopped; what is complete is kept.
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
    sources = _sources(data, tokenizer, settings, on_bad_image)
    listing = _listing(sources, data)
    contents = [source.images.fingerprint().encode() for source in sources.values()]
    settings = replace(
        settings,
        classes=sources["train"].classes,
        images={split: len(source) for split, source in sources.items()},
        listing=hashlib.sha256(b"".join([*listing.values(), *contents])).hexdigest(),
    )
    if before and before.listing != settings.listing:
        raise ValueError(
            f"data = {data!r}: has {_counted(settings)} images, other ones than the cache {out!r} was started with "
            f"({_counted(before)}); restore them, or give a new folder as out"
        )
    try:
        _write_missing(_Found(folder, settings, files), sources, listing, rank, ranks)
    except TimeoutError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"out = {out!r}: cannot be written ({reason}); fix it and run the same command again: it continues"
        ) from error
    return True


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


class _Found:
    """What the folder holds: shards are known by their notes in .unfinished, else by an older manifest."""

    def __init__(self, folder: Path, settings: CacheSettings, files: Mapping[str, Checksum]) -> None:
        self.folder, self.settings, self.files = folder, settings, files
        self.complete: dict[str, Checksum] = {}

    def begin(self) -> None:
        """Write with which settings the cache is made; only before work, as rank 0 deletes them at the end."""
        write_text(self.folder / UNFINISHED / SETTINGS, written_settings(self.settings))

    def is_complete(self, shard: Shard) -> bool:
        """Whether a shard is there and undamaged; one found complete is not read again."""
        if shard.name not in self.complete:
            checksum = self._noted(shard) or self.files.get(shard.name) or self._listed(shard)
            if checksum is None or checksum.damage(self.folder / shard.name):
                return False
            self.complete[shard.name] = checksum
        return True

    def add(self, shard: Shard, checksum: Checksum) -> None:
        """Note a shard that was written."""
        write_text(self._note(shard), json.dumps(checksum._asdict()))
        self.complete[shard.name] = checksum

    def _noted(self, shard: Shard) -> Checksum | None:
        try:
            return Checksum(**json.loads(self._note(shard).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def _listed(self, shard: Shard) -> Checksum | None:
        """What a manifest says that rank 0 has written since this process started."""
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
    """Settings and files of a cache that was started with these settings; None and nothing where there is none."""
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


def _write_missing(
    found: _Found, sources: Mapping[str, EncodedImages], listing: Mapping[str, bytes], rank: int, ranks: int
) -> None:
    """Write this process's shards that are not complete; rank 0 then waits for the others and finishes the cache."""
    folder, settings, shards = found.folder, found.settings, found.settings.shards()
    own = shards[rank::ranks]

    def make(shard: Shard) -> None:
        found.begin()
        start = time.perf_counter()
        found.add(shard, _write(folder / shard.name, _chunks(shard, settings, sources[shard.split])))
        speed = (shard.stop - shard.start) / (time.perf_counter() - start)
        done = f"{own.index(shard) + 1} of {len(own)}"
        print(f"{shard.name} written, {speed:.0f} images/s ({done})", file=sys.stderr, flush=True)

    job = Job(folder=folder, pieces=shards, noun="shards", name=lambda shard: shard.name, is_complete=found.is_complete)
    if rank == 0:
        found.begin()
    job.make_missing(make, rank, ranks)
    if rank == 0:
        job.wait()
        files = {name: _write(folder / name, [content]) for name, content in listing.items()}
        write_text(folder / MANIFEST, written_settings(settings, {**files, **found.complete}))
        job.clean()
        shutil.rmtree(folder / UNFINISHED)


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
