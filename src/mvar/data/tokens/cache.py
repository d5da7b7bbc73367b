"""Token maps that `mvar tokenize` wrote: the files of a cache, and the source that training reads.

    manifest.json                         settings of the cache, each file's size and SHA-256
    train-00000.npy, ... val-00000.npy    shards of tokens (images, views, L), uint16 or int32, memory-mapped
    train-labels.npy, val-labels.npy      int64 (images,)
    train-names.json, val-names.json      the images' names inside their folder
    .unfinished/settings.json             while the cache is made

Shapes: B batch, L tokens of all scales.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mvar.data.order import evenly_spaced
from mvar.files import file_sha256
from mvar.progress import track
from mvar.scales import ScaleSchedule, Sides, VocabSize
from mvar.settings import Augmentation, Count, Many, ResizeFactor, Seed, Whole, ordered, settings
from mvar.text import some

FORMAT, VERSION = "mvar-tokens", 2
MANIFEST, UNFINISHED, SETTINGS = "manifest.json", ".unfinished", "settings.json"
SPLITS = ("train", "val")
AGAIN = "run mvar tokenize again with the cache's settings"


Checksum = dict[str, int | str]  # a file's size and SHA-256


class Shard(NamedTuple):
    """A file with the tokens of images start to stop of a split."""

    name: str
    split: str
    start: int
    stop: int


@settings
class CacheSettings:
    """What decides every byte of a cache.

    Attributes:
        data: name of the image folder.
        tokenizer: fingerprint of the tokenizer's weights.
        sides, vocab_size: of its token maps.
        views: views per training image; validation images have one, their centre.
        resize_factor, augment, seed: see `mvar.data.views.Views`.
        dtype: of the encoder's matrix products.
        batch_size: images encoded at once.
        classes: class names; empty for a set without classes.
        images: number of images by split.
        listing: SHA-256 of the images' names, labels and files.
    """

    data: str
    tokenizer: str
    sides: Sides
    vocab_size: VocabSize
    views: Annotated[int, Whole(1, 1000)] = 1
    resize_factor: ResizeFactor = 1.0
    augment: list[Augmentation] = field(default_factory=list)
    seed: Seed = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: Count = 64
    shard_images: Many = 10_000
    classes: list[str] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=dict)
    listing: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "augment", list(ordered(self.augment)))

    def shape(self, shard: Shard) -> tuple[int, int, int]:
        """(images, views, L) of a shard."""
        views = self.views if shard.split == "train" else 1
        return shard.stop - shard.start, views, ScaleSchedule(self.sides).length

    def shards(self, splits: Iterable[str] = SPLITS) -> list[Shard]:
        """All shards of these splits, in order."""
        return [
            Shard(f"{split}-{start // self.shard_images:05d}.npy", split, start, min(start + self.shard_images, n))
            for split in splits
            for n in [self.images[split]]
            for start in range(0, n, self.shard_images)
        ]


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype in which code indices are stored."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<i4")


def is_cache(folder: str | Path) -> bool:
    """Whether a folder holds a token cache, finished or not, of any version."""
    try:
        return FORMAT in _settings_file(Path(folder)).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False


def written_settings(settings: CacheSettings, files: Mapping[str, Checksum]) -> str:
    """The text of manifest.json, or without any files of settings.json."""
    return json.dumps({"format": FORMAT, "version": VERSION, **asdict(settings), "files": files}, indent=2) + "\n"


def checksum(path: Path) -> Checksum:
    """The size and SHA-256 of a file."""
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


@dataclass(frozen=True)
class TokenCache:
    """A cache, with the checksums of its files by name, none before it was finished."""

    folder: Path
    settings: CacheSettings
    files: dict[str, Checksum]

    @classmethod
    def read(cls, folder: Path, named: str) -> "TokenCache":
        """Read the manifest, or what there is before a cache is finished.

        Raises:
            ValueError: it cannot be used; the line begins with `named`.
        """
        path = _settings_file(folder)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if (version := values.pop("version")) != VERSION:
                raise ValueError(f"version = {version!r}, this mvar reads version {VERSION}")
            del values["format"]
            files = values.pop("files", {})
            return cls(folder, CacheSettings(**values), files)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{named}: {path.name} cannot be used ({error}); delete the cache and run mvar tokenize again"
            ) from error

    @classmethod
    def open(cls, folder: str | Path, field: str = "data") -> "TokenCache":
        """Read the manifest of a finished cache, and verify every file by its size and checksum.

        Raises:
            ValueError: the cache is not finished, or files are missing or damaged.
        """
        folder, named = Path(folder), f"{field} = {str(folder)!r}"
        if (folder / UNFINISHED).is_dir():
            raise ValueError(f"{named}: is not finished; {AGAIN}, it resumes where it stopped")
        cache = cls.read(folder, named)
        if names := cache.damaged():
            said = f"missing or damaged: {some(names)}"
            raise ValueError(f"{named}: {said}; {AGAIN}, it writes only what is damaged or missing")
        return cache

    def damaged(self) -> list[str]:
        """The names of files that are missing or do not have their checksum."""
        paths = ((name, self.folder / name) for name in track(self.files, len(self.files), "verifying tokens"))
        return [name for name, path in paths if not path.is_file() or checksum(path) != self.files[name]]

    def splits(self) -> "tuple[TokenSource, TokenSource]":
        """The training and the validation images; shards are memory-mapped."""
        train, val = (self._source(split) for split in SPLITS)
        return train, val

    def _source(self, split: str) -> "TokenSource":
        shards = [shard.name for shard in self.settings.shards([split])]
        sums = "".join(str(self.files[name]["sha256"]) for name in (f"{split}-labels.npy", *shards))
        return TokenSource(
            shards=[np.load(self.folder / name, mmap_mode="r") for name in shards],
            labels=torch.from_numpy(np.load(self.folder / f"{split}-labels.npy")),
            classes=self.settings.classes,
            names=json.loads((self.folder / f"{split}-names.json").read_text(encoding="utf-8")),
            content=f"tokens {hashlib.sha256(sums.encode()).hexdigest()}",
        )


@dataclass(frozen=True, kw_only=True)
class TokenSource:
    """Token maps of images (a `Source`), from memory-mapped files or from memory.

    Attributes:
        shards: tokens (images, views, L), integers; all but the last hold equally many images.
        names: the images' names.
        content: a hash of tokens and labels, or "".
    """

    shards: list[np.ndarray]
    labels: Tensor
    classes: list[str]
    names: list[str]
    content: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """A hash of the tokens and labels of all images."""
        return self.content

    def name(self, i: int) -> str:
        return self.names[i]

    def batch(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens int64 (B, L) and labels int64 (B,); epoch e shows view e modulo their number, None the first."""
        indices_B = torch.as_tensor(indices_B)
        images, views, L = self.shards[0].shape
        views_B = np.zeros(len(indices_B), dtype=np.int64) if epochs_B is None else epochs_B.numpy() % views
        shards_B, rows_B = np.divmod(indices_B.numpy(), images)
        tokens_BL = np.empty((len(indices_B), L), dtype=np.int64)
        for s in np.unique(shards_B):
            here_B = shards_B == s
            tokens_BL[here_B] = self.shards[s][rows_B[here_B], views_B[here_B]]
        return torch.from_numpy(tokens_BL), self.labels[indices_B]

    def at_most(self, most: int) -> "TokenSource":
        """At most `most` of the images, evenly spaced and in memory, with their first view."""
        if len(self) <= most:
            return self
        chosen = evenly_spaced(len(self), most)
        tokens_BL, labels_B = self.batch(chosen)
        names = [self.names[i] for i in chosen]
        return replace(self, shards=[tokens_BL.numpy()[:, None]], labels=labels_B, names=names)


def _settings_file(folder: Path) -> Path:
    """The manifest, or settings.json while there is none."""
    begun, manifest = folder / UNFINISHED / SETTINGS, folder / MANIFEST
    return begun if begun.is_file() and not manifest.is_file() else manifest


def npy(array: np.ndarray) -> bytes:
    """The content of a .npy file; np.save itself overlooks a full disk."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
