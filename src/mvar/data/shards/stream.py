"""Webdataset shards that are read from beginning to end, as they come from a server or a command.

A stream has no numbered images: each batch takes the next ones. A run resumes at the beginning of the shard that it was
in. Shapes: B images of one slice, H W an image's own size after resizing, h w the model's image size.
"""

import random
import sys
import warnings
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from io import BytesIO
from itertools import chain, count, islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mvar.data.images.decoding import decode
from mvar.data.loader import Batch, Slices
from mvar.data.order import epoch_order
from mvar.data.reading import resized
from mvar.data.shards.samples import Classes, Sample, key_of, samples
from mvar.data.views import Views
from mvar.data.workers import in_threads

SCHEMES = ("http://", "https://", "pipe:")
SHUFFLED = 1000  # samples of one shard in the buffer that shuffles them
SLICES_AHEAD = 2


class StreamedImage(NamedTuple):
    """One image of a stream: its shard and key, its class index, and its pixels before cropping."""

    name: str
    label: int
    pixels_HW3: np.ndarray


@dataclass(frozen=True)
class Stream:
    """Shards to be streamed, and what becomes of their images.

    Attributes:
        urls: of each shard, http(s)://... or pipe:COMMAND.
        classes: class names that the labels refer to; without any, labels are not read.
        views: what training sees of an image; its position in training takes the place of the index. Their seed also
            shuffles the shards and the images in each.
    """

    urls: list[str]
    classes: list[str]
    views: Views
    on_bad_image: Literal["skip", "error"] = "skip"

    def fingerprint(self) -> str:
        """A hash of where the shards come from; their content is not known in advance."""
        return f"shards {sha256(chr(10).join(self.urls).encode()).hexdigest()}"

    def first(self, n: int, batch_size: int) -> Iterator[Tensor]:
        """Centre crops of the first n images of the first epoch, uint8 (at most batch_size, 3, h, w)."""
        images = islice(chain.from_iterable(self.shard(place) for place in range(len(self.urls))), n)
        while some := list(islice(images, batch_size)):
            yield self.views.batch(image.pixels_HW3 for image in some)

    def shard(self, place: int, threads: int | None = None) -> Iterator[StreamedImage]:
        """The readable images of the shard at one place of the endless sequence of shards, shuffled.

        Args:
            threads: that decode; 0 decodes on demand, None takes one for each processor.

        Raises:
            ValueError: the shard cannot be read or holds no readable image, a label is no class, or, with
                `on_bad_image` "error", an image cannot be used.
        """
        seed, (epoch, i) = self.views.seed, divmod(place, len(self.urls))
        url = self.urls[epoch_order(len(self.urls), seed, epoch)[i]]
        shuffle = webdataset().shuffle(SHUFFLED, initial=SHUFFLED, rng=random.Random(f"{seed} {place}"))
        load, mixed = partial(self._load, url, Classes(self.classes)), shuffle(_samples(url))
        good = 0
        for loaded in in_threads(load, mixed, threads):
            if isinstance(loaded, StreamedImage):
                good += 1
                yield loaded
            elif self.on_bad_image == "error":
                raise ValueError(loaded)
            else:
                warnings.warn(f"{loaded}; it is left out", stacklevel=2)
        if not good:
            raise ValueError(f"data = {url!r}: holds no readable image; take this shard out")

    def _load(self, url: str, classes: Classes, sample: Sample) -> StreamedImage | str:
        """The image of a sample, or why it cannot be used."""
        name = f"{url}/{key_of(sample.name)}"
        try:
            if sample.problem is not None:
                raise ValueError(sample.problem)
            image = decode(BytesIO(sample.content))
        except ValueError as error:
            return f"data: {name!r} cannot be used: {error}"
        index = classes.index(sample.label, f"data: {name!r}") if self.classes else 0
        return StreamedImage(name, index, resized(image, self.views.cover))


class StreamLoader:
    """The slices of one rank from a stream, with the interface of `mvar.data.loader.Loader`.

    The ranks take whole shards in turn, in an order that the seed decides for each epoch.
    """

    def __init__(self, stream: Stream, slices: Slices, workers: int = 2) -> None:
        """`workers` threads decode, and one more reads; 0 does both on demand. Results do not depend on it."""
        self.stream, self.slices, self.workers = stream, slices, workers
        self._names: dict[int, list[str]] = {}  # of the last two steps that were asked for
        self._start(0)

    def batch(self, step: int, micro_batch: int = 0) -> Batch:
        """The next images of the stream, whichever step asks; their positions are those of this slice."""
        images, self._turn = next(self._slices)
        self._names = {of: names for of, names in self._names.items() if of in (step - 1, step)}
        self._names.setdefault(step, []).extend(image.name for image in images)
        positions_B = self.slices.positions(step, micro_batch)
        pixels_B3hw = self.stream.views.batch(
            (image.pixels_HW3 for image in images), positions_B, torch.zeros_like(positions_B)
        )
        return Batch(pixels_B3hw, torch.tensor([image.label for image in images]), positions_B)

    def names(self, step: int) -> list[str]:
        """Names of this rank's images of one of the last two steps that were asked for; empty for others."""
        return self._names.get(step, [])

    def state(self) -> dict[str, Any]:
        """How many shards all ranks together have finished, if the others are as far as this one."""
        return {"shards": self._turn * self.slices.ranks}

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume at the beginning of the first unfinished shard, on any number of ranks; prints which one."""
        self.close()
        self._start(state["shards"] // self.slices.ranks)
        epoch, shard = divmod(self._turn * self.slices.ranks, len(self.stream.urls))
        print(
            f"data: the stream resumes at the beginning of shard {shard + 1} of {len(self.stream.urls)} in epoch "
            f"{epoch + 1}; images of it that were seen before come again",
            file=sys.stderr,
        )

    def close(self) -> None:
        """End the threads and the stream, and drop what was read ahead."""
        self._slices.close()  # waits for the slice that is being read
        self._images.close()

    def _start(self, turn: int) -> None:
        self._turn = turn  # shards that this rank has finished
        self._images = self._endless(turn)
        self._next: tuple[int, StreamedImage] | None = None
        self._slices: Generator[tuple[list[StreamedImage], int], None, None]
        self._slices = in_threads(self._read, count(), min(self.workers, 1), SLICES_AHEAD)

    def _endless(self, turn: int) -> Generator[tuple[int, StreamedImage], None, None]:
        """This rank's images with the turn of their shard."""
        for now in count(turn):
            for image in self.stream.shard(now * self.slices.ranks + self.slices.rank, self.workers):
                yield now, image

    def _read(self, _: int) -> tuple[list[StreamedImage], int]:
        """The next slice, and the turn of the image after it."""
        taken = [self._next or next(self._images), *islice(self._images, self.slices.size)]
        self._next = taken.pop()
        return [image for _, image in taken], self._next[0]


def _samples(url: str) -> Iterator[Sample]:
    """The samples of one shard, which webdataset fetches; raises ValueError where it cannot be read to its end."""
    stream: Any = None
    try:
        stream = webdataset().gopen(url)
        yield from samples(stream, stream=True)
        while stream.read(2**20):
            pass  # to the end, so that the command can finish
        stream.close()  # raises if it failed
    except Exception as error:  # of the network, the command or the tar
        why = str(error)
        with suppress(Exception):
            stream.close()
        if (status := getattr(stream, "status", 0)) not in (0, None, 141):  # 141: nobody read on
            why = f"the command that fetches it ended with exit status {status}"
        raise ValueError(f"data = {url!r}: {why}; check that it can be fetched, then resume") from error


def webdataset() -> Any:
    """The optional library; raises ValueError where it is not installed."""
    try:
        import webdataset
    except ImportError as error:
        raise ValueError("data: a stream needs the package webdataset; pip install 'mvar-torch[shards]'") from error
    return webdataset
