"""How likely a model finds images: exact log p(tokens | class), and the class by Bayes' rule.

Shapes: B images, C classes, K scales, L tokens, V codes; P tokens of a scale, H W pixels.
Source: p(maps | class) = product over the scales of p(map | coarser maps, class), and each map's tokens are
independent of one another given these (VAR, Tian et al. 2024, equation 3): one teacher-forced pass gives every factor.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mvar.data.images.decoding import as_image
from mvar.data.views import fitted
from mvar.generator.network import Generator
from mvar.sampling.concurrency import current_dispatcher, turn
from mvar.sampling.cost import fitting_rows
from mvar.sampling.engine import batches, check_logits
from mvar.tokenizer.network import Tokenizer

ImageLike = str | Path | Image.Image
Images = Sequence[ImageLike] | Tensor
ENCODED_AT_ONCE = 64  # images


@dataclass(frozen=True)
class Score:
    """Likelihood of images' token maps.

    Attributes:
        log_prob_BK: log p(map k | coarser maps, class) in nats, float64, on the CPU.
        areas: tokens of each scale.
    """

    log_prob_BK: Tensor
    areas: tuple[int, ...]

    @property
    def log_prob(self) -> Tensor:
        """log p(all maps | class) in nats, (B,)."""
        return self.log_prob_BK.sum(1)

    @property
    def bits_per_token(self) -> Tensor:
        """-log2 p(all maps | class) over the number of tokens, (B,)."""
        return -self.log_prob / (sum(self.areas) * math.log(2))

    @property
    def bits_per_token_scales(self) -> Tensor:
        """The same by scale, (B, K)."""
        return -self.log_prob_BK / (torch.tensor(self.areas) * math.log(2))


@dataclass(frozen=True)
class Classification:
    """Classes by Bayes' rule.

    Attributes:
        log_posterior_BC: log p(class | maps), float64, on the CPU; each row's exponentials sum to 1.
        names: of the classes.
    """

    log_posterior_BC: Tensor
    names: list[str]

    @property
    def ids(self) -> list[int]:
        """The likeliest class of each image."""
        return self.log_posterior_BC.argmax(1).tolist()

    @property
    def labels(self) -> list[str]:
        """Its name."""
        return [self.names[i] for i in self.ids]


def token_maps(tokenizer: Tokenizer, images: Images) -> list[Tensor]:
    """Token maps (B, P_k) of images, on the tokenizer's device.

    Args:
        images: files or Pillow images, resized and cropped as in training; or pixels (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: no image, or one that cannot be used.
    """
    if isinstance(images, (str, Path, Image.Image)):
        images = [images]
    if not len(images):
        raise ValueError("images is empty: give at least one")
    device, parts = tokenizer.quantizer.codebook.device, []
    for part in batches(len(images), ENCODED_AT_ONCE):
        some = images[part]
        if not isinstance(some, Tensor):
            some = torch.stack([fitted(as_image(image), tokenizer.config.image_shape) for image in some])
        with turn():
            parts.append(tokenizer.encode(some.to(device)))
    return [torch.cat(maps) for maps in zip(*parts, strict=True)]


def first_maps(maps: list[Tensor], scales: int | None) -> list[Tensor]:
    """The maps of the first few scales; None for all.

    Raises:
        ValueError: more than there are, or less than one.
    """
    if scales is not None and not 1 <= scales <= len(maps):
        raise ValueError(f"scales = {scales}: give 1 to {len(maps)}")
    return maps[:scales]


@torch.no_grad()
def token_log_probs(tokenizer: Tokenizer, generator: Generator, maps: Sequence[Tensor], labels_B: Tensor) -> Tensor:
    """log p(token | tokens of coarser scales, class) of every token, float64 (B, L) on the CPU.

    Args:
        maps: token maps, (B, P_k) each, of all scales or the first few.
        labels_B: class indices; num_classes for no class.

    Raises:
        FloatingPointError: logits that are not finite; see `check_logits`.
    """
    device, scales, parts = generator.head.weight.device, range(len(maps)), []
    for part in batches(len(labels_B), _rows(generator)):
        some = [tokens_BP[part].to(device) for tokens_BP in maps]
        tokens_bL = torch.cat(some, dim=1)
        with turn():
            modulation = generator.modulation(labels_B[part].to(device))
            inputs_blZ = tokenizer.generator_inputs(some) if len(scales) > 1 else None
            x_bLC = generator.embed(inputs_blZ, modulation, scales)
            logits_bLV, _ = generator.step(x_bLC, modulation, None, scales)
            check_logits(logits_bLV, generator.schedule, scales)
            nll_N = F.cross_entropy(logits_bLV.flatten(0, 1), tokens_bL.flatten(), reduction="none")
        nll_bL = nll_N.view(tokens_bL.shape)
        parts.append(-nll_bL.cpu().double())  # in this order: Apple's GPUs have no float64
    return torch.cat(parts)


def score(tokenizer: Tokenizer, generator: Generator, maps: Sequence[Tensor], labels_B: Tensor) -> Score:
    """Likelihood of token maps, (B, P_k) each, of all scales or the first few, given each image's class."""
    areas = generator.schedule.areas[: len(maps)]
    by_scale = token_log_probs(tokenizer, generator, maps, labels_B).split(areas, dim=1)
    return Score(torch.stack([part_BP.sum(1) for part_BP in by_scale], dim=1), areas)


def _rows(generator: Generator) -> int:
    """How many sequences to score at once."""
    most, dispatcher = fitting_rows(generator.config, generator.head.weight.device), current_dispatcher()
    return most if dispatcher is None else min(most, dispatcher.rows)


def class_log_probs(tokenizer: Tokenizer, generator: Generator, maps: Sequence[Tensor]) -> Tensor:
    """log p(map k | coarser maps, class) for every class and map, float64 (B, C, K) on the CPU."""
    C, parts = generator.config.num_classes, []
    for images in batches(len(maps[0]), max(1, fitting_rows(generator.config, generator.head.weight.device) // C)):
        some = [tokens_BP[images].repeat_interleave(C, dim=0) for tokens_BP in maps]  # each image under every class
        labels_r = torch.arange(C).repeat(images.stop - images.start)
        parts.append(score(tokenizer, generator, some, labels_r).log_prob_BK)
    return torch.cat(parts).unflatten(0, (-1, C))


def classify(
    tokenizer: Tokenizer,
    generator: Generator,
    maps: Sequence[Tensor],
    classes: list[str],
    prior: Sequence[float] | None = None,
) -> Classification:
    """Classes of token maps by Bayes' rule; `prior` is p(class) of each class, None for a uniform one.

    Raises:
        ValueError: a prior that is not one, or a model of fewer than two classes.
    """
    C = len(classes)
    if C < 2:
        raise ValueError(f"this model has {C} classes: classifying takes one with two or more")
    prior_C = torch.tensor([1 / C] * C if prior is None else [float(p) for p in prior]).double()
    if len(prior_C) != C or not bool((prior_C >= 0).all()) or abs(float(prior_C.sum()) - 1) > 1e-3:
        raise ValueError(f"prior = {prior}: give {C} probabilities that sum to 1")
    log_joint_BC = class_log_probs(tokenizer, generator, maps).sum(2) + prior_C.log()
    return Classification(log_joint_BC.log_softmax(dim=1), classes)
