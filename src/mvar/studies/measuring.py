"""What the recipes of the packaged models measure: reconstructions, codes, bits, and samples beside real images.

All images are compared in the form that the originals have, whatever the model makes of them.

Shapes: N images, B images of a batch, K scales, L tokens, C channels or classes, h w pixels of the originals.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from mvar.data.images.folders import ImageFolder
from mvar.data.order import evenly_spaced
from mvar.data.source import PixelSource
from mvar.evaluation.images import Classifier, confusion, mean_distance, psnr
from mvar.evaluation.tokens import bits_per_token, usage
from mvar.features.judge import Judge
from mvar.model import Model, load
from mvar.progress import track
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import to_images
from mvar.sampling.sheet import class_sheet, strip
from mvar.text import some

BATCH = 100
SHEET_COLUMNS = 8


@dataclass(frozen=True)
class Form:
    """The form in which images are compared: 8 bits a channel, with what the data set added taken away.

    Args:
        side: of the files.
        frame: black pixels on every side of the files that the originals do not have.
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
    """Images in the originals' form, and which class folder each is from."""

    images_Nchw: Tensor  # uint8
    labels_N: Tensor  # the folder's place among the sorted names, which is also the model's class
    classes: list[str]


class RoundTrip(NamedTuple):
    """Real images through the tokenizer."""

    tokens: list[Tensor]  # one (N, P_k) a scale
    images_Nchw: Tensor  # restored, in the originals' form


class Drawn(NamedTuple):
    """Samples: as many of each class, class by class."""

    images: Labelled
    first: list[list[Image.Image]]  # a few of each class as the model gives them
    seconds: float  # an image


def load_whole(model: str, device: str | None) -> Model:
    """A model that draws; raises ValueError for a tokenizer alone."""
    loaded = load(model, device)
    if loaded.generator is None:
        raise ValueError(f"model = {model!r}: a tokenizer without a generator; give the generator's run")
    return loaded


def load_judge(judge: str, classes: Sequence[str]) -> Judge:
    """The judge of these classes; raises ValueError for one of another number of classes."""
    critic = Judge.load(judge)
    if (known := critic.head.out_features) != len(classes):
        raise ValueError(f"judge = {judge!r}: knows {known} classes, the model {len(classes)}; give another")
    return critic


def originals(
    data: str,
    split: str,
    form: Form,
    classes: Sequence[str] = (),
    per_class: int | None = None,
    lacking: bool = False,
) -> Labelled:
    """Real images in their original form.

    Args:
        data: folder with `split` inside.
        split: "train" or "val".
        form: theirs.
        classes: what the class folders must be, and labels refer to; empty for anything.
        per_class: at most about so many of each class, evenly spaced.
        lacking: whether some of the classes may have no images.

    Raises:
        ValueError: the folder is no set of classes, or not of these.
    """
    index = ImageFolder.scan(Path(data) / split, classes=list(classes) if lacking else None)
    if not index.classes or (classes and list(classes) != index.classes):
        expected = some(classes) if classes else "a folder for each of several classes"
        raise ValueError(f"data = {data!r}: {split}/ has classes {some(index.classes)}, expected {expected}")
    if per_class is not None:
        chosen = evenly_spaced(len(index.paths), per_class * len(index.classes))
        index = replace(index, paths=[index.paths[i] for i in chosen], labels=[index.labels[i] for i in chosen])
    source = PixelSource.read(index, (form.side, form.side), resize_factor=1.0)
    images_N3hw, labels_N = source.batch(range(len(source)))
    return Labelled(form.of(images_N3hw / 255), labels_N, source.classes)


def tokenizer_report(loaded: Model, form: Form, data: str, test: Labelled) -> tuple[dict[str, Any], RoundTrip]:
    """PSNR of the test images on their original pixels, and how the codes are used."""
    tokenizer, config = loaded.tokenizer, loaded.tokenizer.config
    source = PixelSource.read(ImageFolder.scan(Path(data, "val")), config.image_shape, resize_factor=1.0)
    parts, restored = [], []
    rows = torch.arange(len(source)).split(BATCH)
    for rows_B in track(rows, len(rows), "reconstructing images"):
        pixels_B3HW = source.batch(rows_B)[0] / 255
        maps = tokenizer.encode(pixels_B3HW.to(loaded.device))
        parts.append([map_BP.cpu() for map_BP in maps])
        restored.append(form.of(tokenizer.decode(maps)).cpu())
    trip = RoundTrip([torch.cat(maps) for maps in zip(*parts, strict=True)], torch.cat(restored))

    V = config.vocab_size
    by_scale = [usage(map_NP, V)._asdict() for map_NP in trip.tokens]
    shapes = config.schedule.shapes
    fine = [map_NP.flatten() for map_NP, shape in zip(trip.tokens, shapes, strict=True) if min(shape) >= 3]
    return {
        "images": len(source),
        "psnr": float(psnr(trip.images_Nchw, test.images_Nchw).mean()),
        "vocab_size": V,
        "scales": [{"map": name, **use} for name, use in zip(scale_names(loaded), by_scale, strict=True)],
        "from_3x3": usage(torch.cat(fine), V)._asdict() if fine else None,
    }, trip


def generator_report(loaded: Model, tokens: list[Tensor], labels_N: Tensor) -> dict[str, Any]:
    """Bits per token of the test images, teacher forced and given their class."""
    if loaded.generator is None:
        raise ValueError("model: has no generator to measure")
    bits_L = bits_per_token(loaded.tokenizer, loaded.generator, tokens, labels_N)
    schedule, V = loaded.generator.schedule, loaded.tokenizer.config.vocab_size
    entropies = [math.log2(usage(map_NP, V).perplexity) for map_NP in tokens]
    return {
        "bits_per_token": float(bits_L.mean()),
        "bits_per_image": float(bits_L.sum()),
        "log2_vocab": math.log2(V),
        "scales": [float(bits_L[schedule.slice(k)].mean()) for k in range(len(schedule))],
        # What would be left for a model that knows only how often each scale uses each code on these images.
        "frequencies_alone": entropies,
        "frequencies_alone_per_token": sum(map(math.prod, zip(entropies, schedule.areas, strict=True)))
        / schedule.length,
    }


def draw(loaded: Model, form: Form, per_class: int, seed: int, settings: SamplingSettings) -> Drawn:
    """Draw as many samples of each class; sample i of class c has index c * per_class + i."""
    labels_N = torch.arange(len(loaded.classes)).repeat_interleave(per_class)
    images, seconds = [], 0.0
    first: list[list[Image.Image]] = [[] for _ in loaded.classes]
    rows = torch.arange(len(labels_N)).split(BATCH)
    for rows_B in track(rows, len(rows), "drawing samples"):
        start = time.perf_counter()
        out = loaded.sample(labels_N[rows_B].tolist(), index=rows_B.tolist(), seed=seed, **asdict(settings))
        seconds += time.perf_counter() - start
        images.append(form.of(out.pixels))
        for label, image in zip(labels_N[rows_B].tolist(), out.images, strict=True):
            if len(first[label]) < SHEET_COLUMNS:
                first[label].append(image)
    return Drawn(Labelled(torch.cat(images), labels_N, loaded.classes), first, seconds / len(labels_N))


def judged(judge: Classifier, samples: Labelled, real_C: Tensor) -> dict[str, Any]:
    """How many samples the judge takes for their class, and how their spread compares to that of real images.

    Args:
        judge: of the same classes.
        samples: what to judge.
        real_C: mean distance inside each class of real images.
    """
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


def samples_report(judge: Classifier, drawn: Drawn, test: Labelled, restored_Nchw: Tensor) -> dict[str, Any]:
    """Samples beside the real test images, and beside their reconstructions: what the tokenizer alone changes."""
    real_C = mean_distance(test.images_Nchw, test.labels_N, len(test.classes))
    through = test._replace(images_Nchw=restored_Nchw)
    return {
        "images": len(drawn.images.labels_N),
        "classes": test.classes,
        "seconds_per_image": drawn.seconds,
        "batch_size": BATCH,
        **judged(judge, drawn.images, real_C),
        "class_distance_of_real": real_C.tolist(),
        "real": judged(judge, test, real_C),
        "reconstructed": judged(judge, through, real_C),
    }


# --- sheets ---


def reconstruction_sheet(test: Labelled, restored_Nchw: Tensor, rows: int = 2) -> Image.Image:
    """The first test images of each class over their reconstructions."""
    sheet = []
    for r in range(rows):
        chosen = [int((test.labels_N == c).nonzero()[r]) for c in range(len(test.classes))]
        for name, images_Nchw in (("original", test.images_Nchw), ("reconstructed", restored_Nchw)):
            sheet.append((name, to_images(images_Nchw[chosen].expand(-1, 3, -1, -1) / 255)))
    return class_sheet(sheet)


def growth(loaded: Model, per_class: int, seed: int) -> Image.Image:
    """How the first sample of each class grows from scale to scale."""
    C = len(loaded.classes)
    columns: list[list[Image.Image]] = []
    loaded.sample(
        list(range(C)),
        index=[c * per_class for c in range(C)],
        seed=seed,
        on_scale=lambda k, K, preview: columns.append(to_images(preview())),
    )
    return strip(list(zip(*columns, strict=True)), scale_names(loaded))


# --- facts ---


def scale_names(loaded: Model) -> list[str]:
    """1x1, 2x2, ..."""
    return [f"{h}x{w}" for h, w in loaded.tokenizer.config.schedule.shapes]


def settings_of(loaded: Model) -> dict[str, Any]:
    """The model's sampling defaults."""
    return asdict(loaded.defaults)


def facts(loaded: Model) -> dict[str, Any]:
    """Sizes of the networks and where they come from."""
    networks = {"tokenizer": loaded.tokenizer, "generator": loaded.generator}
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items() if net is not None}
    return {"parameters": sizes, "provenance": loaded.provenance}
