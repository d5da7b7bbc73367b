"""What is measured of a packaged model: reconstructions, codes, bits, and samples beside real images.

Shapes: N images, B images per batch, K scales, L tokens, C classes, P tokens of a map, V codes, h w pixels.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from mvar.data.images.folders import ImageFolder
from mvar.data.source import PixelSource
from mvar.evaluation.images import Classifier, mean_distance, psnr
from mvar.model import Model
from mvar.sampling.engine import to_images
from mvar.sampling.likelihood import token_log_probs
from mvar.sampling.sheet import class_sheet, strip
from mvar.studies.measuring import BATCH, Drawn, Form, Labelled, batches, judged
from mvar.tokenizer.quantizer import code_usage


class Usage(NamedTuple):
    """How a set of tokens uses the codebook."""

    used: int  # codes that occur at least once
    perplexity: float  # exp(entropy) of the codes' shares: how many codes, equally used, would be as varied


def usage(tokens: Tensor, vocab_size: int) -> Usage:
    """Usage of the codebook by tokens of any shape."""
    return Usage(*code_usage(torch.bincount(tokens.flatten(), minlength=vocab_size)))


class RoundTrip(NamedTuple):
    """Real images through the tokenizer."""

    tokens: list[Tensor]  # per scale (N, P)
    images_Nchw: Tensor  # reconstructed, in the originals' form


def tokenizer_report(loaded: Model, form: Form, data: str, test: Labelled) -> tuple[dict[str, Any], RoundTrip]:
    """PSNR of the test images on their original pixels, and how the codes are used."""
    tokenizer, config = loaded.tokenizer, loaded.tokenizer.config
    source = PixelSource.read(ImageFolder.scan(Path(data, "val")), config.image_shape, resize_factor=1.0)
    parts, restored = [], []
    for rows_B in batches(len(source), "reconstructing images"):
        maps = tokenizer.encode((source.batch(rows_B)[0] / 255).to(loaded.device))
        parts.append([map_BP.cpu() for map_BP in maps])
        restored.append(form.of(tokenizer.decode(maps)).cpu())
    trip = RoundTrip([torch.cat(maps) for maps in zip(*parts, strict=True)], torch.cat(restored))

    V, shapes = config.vocab_size, config.schedule.shapes
    by_scale = [usage(map_NP, V)._asdict() for map_NP in trip.tokens]
    fine = [map_NP.flatten() for map_NP, shape in zip(trip.tokens, shapes, strict=True) if min(shape) >= 3]
    return {
        "images": len(source),
        "psnr": float(psnr(trip.images_Nchw, test.images_Nchw).mean()),
        "vocab_size": V,
        "scales": [{"map": name, **use} for name, use in zip(scale_names(loaded), by_scale, strict=True)],
        "from_3x3": usage(torch.cat(fine), V)._asdict(),
    }, trip


def generator_report(loaded: Model, tokens: list[Tensor], labels_N: Tensor) -> dict[str, Any]:
    """Bits per token of the test images, teacher forced and given their class; `loaded` has a generator."""
    assert loaded.generator is not None
    bits_L = -token_log_probs(loaded.tokenizer, loaded.generator, tokens, labels_N).mean(0) / math.log(2)
    schedule, V = loaded.generator.schedule, loaded.tokenizer.config.vocab_size
    entropies = [math.log2(usage(map_NP, V).perplexity) for map_NP in tokens]
    return {
        "bits_per_token": float(bits_L.mean()),
        "bits_per_image": float(bits_L.sum()),
        "log2_vocab": math.log2(V),
        "scales": [float(bits_L[schedule.slice(k)].mean()) for k in range(len(schedule))],
        # The bits of a model that knows only how often each scale uses each code on these images.
        "frequencies_alone": entropies,
        "frequencies_alone_per_token": sum(map(math.prod, zip(entropies, schedule.areas, strict=True)))
        / schedule.length,
    }


def samples_report(judge: Classifier, drawn: Drawn, test: Labelled, restored_Nchw: Tensor) -> dict[str, Any]:
    """Samples beside the real test images and their reconstructions, which show what the tokenizer alone changes."""
    real_C = mean_distance(test.images_Nchw, test.labels_N, len(test.classes))
    return {
        "images": len(drawn.images.labels_N),
        "classes": test.classes,
        "seconds_per_image": drawn.seconds,
        "batch_size": BATCH,
        **judged(judge, drawn.images, real_C),
        "class_distance_of_real": real_C.tolist(),
        "real": judged(judge, test, real_C),
        "reconstructed": judged(judge, test._replace(images_Nchw=restored_Nchw), real_C),
    }


def reconstruction_sheet(test: Labelled, restored_Nchw: Tensor, rows: int = 2) -> Image.Image:
    """The first test images of each class above their reconstructions."""
    sheet = []
    for r in range(rows):
        chosen = [int((test.labels_N == c).nonzero()[r]) for c in range(len(test.classes))]
        for name, images_Nchw in (("original", test.images_Nchw), ("reconstructed", restored_Nchw)):
            sheet.append((name, to_images(images_Nchw[chosen].expand(-1, 3, -1, -1) / 255)))
    return class_sheet(sheet)


def growth(loaded: Model, per_class: int, seed: int) -> Image.Image:
    """The first sample of each class after every scale."""
    C = len(loaded.classes)
    columns: list[list[Image.Image]] = []
    loaded.sample(
        list(range(C)),
        index=[c * per_class for c in range(C)],
        seed=seed,
        on_scale=lambda k, K, preview: columns.append(to_images(preview())),
    )
    return strip(list(zip(*columns, strict=True)), scale_names(loaded))


def scale_names(loaded: Model) -> list[str]:
    """1x1, 2x2, ..."""
    return [f"{h}x{w}" for h, w in loaded.tokenizer.config.schedule.shapes]


def facts(loaded: Model) -> dict[str, Any]:
    """Parameters of the networks, and the provenance of their weights."""
    networks = {"tokenizer": loaded.tokenizer, "generator": loaded.generator}
    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items() if net is not None}
    return {"parameters": sizes, "provenance": loaded.provenance}
