"""Images and samples that studies compare, all in the form of the original files, whatever the model makes of them.

Shapes: N images, B images per batch, C channels or classes, h w pixels of the originals.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from mvar.checkpoint.placement import Dtype
from mvar.data.images.folders import ImageFolder
from mvar.data.order import evenly_spaced
from mvar.data.shards.local import ShardSet
from mvar.data.source import PixelSource
from mvar.data.splits import validation_images
from mvar.data.tokens.cache import TokenCache, is_cache
from mvar.data.tokens.encoded import EncodedImages
from mvar.evaluation.images import Classifier, confusion, mean_distance
from mvar.features.judge import Judge
from mvar.model import Model, load
from mvar.progress import track
from mvar.sampling.config import SamplingSettings
from mvar.sampling.labels import places
from mvar.scales import ScaleSchedule
from mvar.text import some

Index = TypeVar("Index", bound=ImageFolder | ShardSet)

BATCH = 100
SHEET_COLUMNS = 8


@dataclass(frozen=True)
class Form:
    """The form in which images are compared: 8 bits per channel, without what the data set added.

    Args:
        side: of the files, in pixels.
        frame: pixels on every side of the files that the originals do not have.
        grey: one channel, the mean of the three.
    """

    side: int
    frame: int = 0
    grey: bool = False

    def of(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [0, 1] of any size as uint8 (B, C, h, w)."""
        pixels_BCHW = pixels_B3HW.mean(1, keepdim=True) if self.grey else pixels_B3HW
        if pixels_BCHW.shape[2:] != (self.side, self.side):
            pixels_BCHW = interpolate(pixels_BCHW, (self.side, self.side), mode="bicubic", antialias=True)
        inner = slice(self.frame, self.side - self.frame)
        return (255 * pixels_BCHW[..., inner, inner]).round().clamp(0, 255).byte()


class Labelled(NamedTuple):
    """Images in the originals' form, each with its class."""

    images_Nchw: Tensor  # uint8
    labels_N: Tensor  # index into the sorted names, which is also the model's class
    classes: list[str]


class Drawn(NamedTuple):
    """Samples, equally many of each class, class by class."""

    images: Labelled
    first: list[list[Image.Image]]  # a few of each class as the model returns them
    seconds: float  # per image


def load_with_generator(model: str, device: str | None = None, dtype: Dtype | None = None) -> Model:
    """A model that can sample; raises ValueError for a tokenizer alone."""
    loaded = load(model, device, dtype)
    if loaded.generator is None:
        raise ValueError(f"model = {model!r}: a tokenizer without a generator; give the generator's run")
    return loaded


def load_judge(judge: str, classes: Sequence[str]) -> Judge:
    """The judge of these classes; raises ValueError where their number differs."""
    critic = Judge.load(judge)
    if (known := critic.head.out_features) != len(classes):
        raise ValueError(f"judge = {judge!r}: knows {known} classes, the model {len(classes)}; give another")
    return critic


def subset(index: Index, most: int) -> Index:
    """At most this many images of a set, evenly spaced."""
    rows = evenly_spaced(len(index.paths), most)
    chosen: dict[str, Any] = {"paths": [index.paths[i] for i in rows], "labels": [index.labels[i] for i in rows]}
    return replace(index, **chosen)


def batches(n: int, label: str, size: int = BATCH) -> Iterator[Tensor]:
    """The numbers 0 to n - 1 in batches, with a progress bar."""
    rows = torch.arange(n).split(size)
    return track(rows, len(rows), label)


def originals(
    data: str,
    split: str,
    form: Form,
    classes: Sequence[str] = (),
    per_class: int | None = None,
    lacking: bool = False,
) -> Labelled:
    """The images of "train" or "val" in their original form; at most about `per_class` of each class, evenly spaced.

    Args:
        classes: expected class folders, to which labels refer; empty accepts any.
        lacking: whether classes without images are accepted.

    Raises:
        ValueError: the folder has no classes, or others than expected.
    """
    index = ImageFolder.scan(Path(data) / split, classes=list(classes) if lacking else None)
    if not index.classes or (classes and list(classes) != index.classes):
        expected = some(classes) if classes else "a folder for each of several classes"
        raise ValueError(f"data = {data!r}: {split}/ has classes {some(index.classes)}, expected {expected}")
    if per_class is not None:
        index = subset(index, per_class * len(index.classes))
    source = PixelSource.read(index, (form.side, form.side), resize_factor=1.0)
    images_N3hw, labels_N = source.batch(range(len(source)))
    return Labelled(form.of(images_N3hw / 255), labels_N, source.classes)


def validation_tokens(loaded: Model, data: str, most: int) -> tuple[Tensor, Tensor]:
    """Token maps of at most `most` validation images of a data set or a token cache, evenly spaced.

    Returns:
        Tokens (N, L) of all scales, and the model's class indices (N,); the null class for a model without classes.

    Raises:
        ValueError: a set that cannot be used, of other classes than the model's, or a cache of another tokenizer.
    """
    if is_cache(data):
        cache = TokenCache.open(data)
        made, tokenizer = cache.settings, loaded.tokenizer
        if made.tokenizer != tokenizer.fingerprint() or ScaleSchedule(made.sides) != tokenizer.config.schedule:
            raise ValueError(f"data = {data!r}: another tokenizer than the model's made this cache; give its images")
        source = cache.splits()[1].at_most(most)
    else:
        index = subset(validation_images(data, classes=loaded.classes or None), most)
        pixels = PixelSource.read(index, loaded.tokenizer.config.image_shape, resize_factor=1.0)
        source = EncodedImages(images=pixels, tokenizer=loaded.tokenizer).in_memory("encoding validation images")
    tokens_NL, labels_N = source.batch(range(len(source)))
    if not loaded.classes:
        return tokens_NL, torch.zeros_like(labels_N)
    held = places(source.classes, loaded.classes)
    if not held or min(held) < 0:
        raise ValueError(f"data = {data!r}: has classes {some(source.classes)}, the model {some(loaded.classes)}")
    return tokens_NL, torch.tensor(held)[labels_N]


def draw(loaded: Model, form: Form, per_class: int, seed: int, settings: SamplingSettings) -> Drawn:
    """Draw the same number of samples of each class; sample i of class c has index c * per_class + i."""
    labels_N = torch.arange(len(loaded.classes)).repeat_interleave(per_class)
    images, seconds = [], 0.0
    first: list[list[Image.Image]] = [[] for _ in loaded.classes]
    for rows_B in batches(len(labels_N), "drawing samples"):
        start = time.perf_counter()
        out = loaded.sample(labels_N[rows_B].tolist(), index=rows_B.tolist(), seed=seed, **asdict(settings))
        seconds += time.perf_counter() - start
        images.append(form.of(out.pixels))
        for label, image in zip(labels_N[rows_B].tolist(), out.images, strict=True):
            if len(first[label]) < SHEET_COLUMNS:
                first[label].append(image)
    return Drawn(Labelled(torch.cat(images), labels_N, loaded.classes), first, seconds / len(labels_N))


def judged(judge: Classifier, samples: Labelled, real_C: Tensor) -> dict[str, Any]:
    """How many samples the judge assigns to their class, and their spread relative to that within real classes."""
    C = len(samples.classes)
    counts_CC = confusion(judge, samples.images_Nchw, samples.labels_N, C)
    distance_C = mean_distance(samples.images_Nchw, samples.labels_N, C)
    return {
        "accuracy": float(counts_CC.trace() / counts_CC.sum()),
        "class_accuracy": (counts_CC.diagonal() / counts_CC.sum(1)).tolist(),
        "spread_ratio": float(distance_C.mean() / real_C.mean()),
        "class_spread_ratio": (distance_C / real_C).tolist(),
        "confusion": counts_CC.tolist(),
    }
