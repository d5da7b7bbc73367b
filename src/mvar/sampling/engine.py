"""The scale loop: from labels to token maps to images, each scale's map drawn at once, coarse to fine.

Shapes: B images, R rows of the generator's batch (B, or 2B with the unconditional branch), C width, V codes, Z latent
channels; l tokens of the current scale, h w its sides, H W the finest sides.
Source: VAR (Tian et al. 2024), sections 3 and 4; M-VAR carries its Mamba state from scale to scale.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mvar.generator.network import Generator
from mvar.ops.filtering import guidance_ratio, guide, top_k, top_p
from mvar.ops.noise import gumbel
from mvar.sampling.config import SamplingSettings
from mvar.tokenizer.network import Tokenizer

# Called after each scale with k, K and a function that decodes what there is so far to pixels (B, 3, H, W).
OnScale = Callable[[int, int, Callable[[], Tensor]], None]


@dataclass(frozen=True)
class SampleOutput:
    """What sampling gives.

    Attributes:
        pixels: (B, 3, H, W) float32 in [0, 1], on the CPU.
        tokens: one LongTensor (B, P_k) for each scale, on the CPU; None for smooth samples, which have none.
    """

    pixels: Tensor
    tokens: list[Tensor] | None

    @property
    def images(self) -> list[Image.Image]:
        """The pixels as 8-bit RGB images, rounded to nearest."""
        return to_images(self.pixels)


def to_uint8(pixels_B3HW: Tensor) -> np.ndarray:
    """Pixels in [0, 1] as a uint8 array (B, H, W, 3), rounded to nearest."""
    return (255 * pixels_B3HW.float().cpu()).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def to_images(pixels_B3HW: Tensor) -> list[Image.Image]:
    """Pixels in [0, 1] as 8-bit RGB images, rounded to nearest."""
    return [Image.fromarray(array) for array in to_uint8(pixels_B3HW)]


def join(parts: Sequence[SampleOutput]) -> SampleOutput:
    """Samples drawn in several batches as one, in order."""
    pixels_B3HW = torch.cat([part.pixels for part in parts])
    tokens = [part.tokens for part in parts if part.tokens is not None]
    return SampleOutput(pixels_B3HW, [torch.cat(maps) for maps in zip(*tokens, strict=True)] if tokens else None)


@torch.no_grad()
def sample(
    tokenizer: Tokenizer,
    generator: Generator,
    labels_B: Tensor,
    index: Sequence[int],
    seed: int,
    settings: SamplingSettings,
    on_scale: OnScale | None = None,
) -> SampleOutput:
    """Draw one image for each label.

    Args:
        tokenizer, generator: of the same schedule and codebook, in eval mode, on one device.
        labels_B: class indices; num_classes is the null class.
        index: each image's own number: image i depends on (seed, index[i], labels_B[i], settings) only.
        seed: of the run, 0 to 2**64 - 1.
        settings: guidance and filters.
        on_scale: called after each scale; see `OnScale`.

    Raises:
        ValueError: settings, seed or index out of range, or not one index for each label.
    """
    settings.validate()
    B, device = len(labels_B), generator.head.weight.device
    if len(index) != B:
        raise ValueError(f"index has {len(index)} numbers for {B} labels: give one for each image")
    quantizer = tokenizer.quantizer
    schedule, K, V = quantizer.schedule, len(quantizer.schedule), quantizer.codebook.shape[0]

    null = generator.config.num_classes
    labels_R = labels_B.to(device)
    # Guidance between two equal branches changes nothing: images without a class need one branch.
    if settings.guidance > 0 and bool((labels_R != null).any()):
        labels_R = torch.cat((labels_R, torch.full_like(labels_R, null)))
    guided = len(labels_R) > B

    modulation = generator.modulation(labels_R)
    state = generator.initial_state(len(labels_R))
    f_hat_BZHW = quantizer.zeros(B)
    inputs_RlZ = None
    tokens = []
    for k in range(K):
        ratio = guidance_ratio(k, K)
        t = settings.guidance * ratio if guided else 0.0
        scale = range(k, k + 1)
        x_RlC = generator.embed(inputs_RlZ, modulation, scale)
        # Without guidance at this scale the other branch fills its state only.
        logits_RlV, state = generator.step(x_RlC, modulation, state, scale, head_rows=None if t else B)
        logits_BlV = guide(logits_RlV[:B], logits_RlV[B:], t) if t else logits_RlV
        logits_BlV = top_p(top_k(logits_BlV / settings.temperature, settings.top_k), settings.top_p)
        noise_BlV = gumbel(seed, index, k, (schedule.areas[k], V)).to(device)

        if settings.smooth:
            codes_BZhw = _mix(logits_BlV, noise_BlV, ratio, quantizer.codebook, schedule.shapes[k])
        else:
            tokens.append((logits_BlV + noise_BlV).argmax(dim=-1))
            codes_BZhw = quantizer.lookup(tokens[-1], k)
        f_hat_BZHW = quantizer.add(f_hat_BZHW, codes_BZhw, k)

        if on_scale is not None:
            on_scale(k, K, partial(_pixels, tokenizer, f_hat_BZHW))
        if k + 1 < K:
            inputs_BlZ = quantizer.input_of(f_hat_BZHW, k + 1).flatten(2).transpose(1, 2)
            inputs_RlZ = torch.cat((inputs_BlZ, inputs_BlZ)) if guided else inputs_BlZ

    pixels_B3HW = _pixels(tokenizer, f_hat_BZHW)
    return SampleOutput(pixels_B3HW, None if settings.smooth else [tokens_BP.cpu() for tokens_BP in tokens])


def _pixels(tokenizer: Tokenizer, f_hat_BZHW: Tensor) -> Tensor:
    return tokenizer.decode_latent(f_hat_BZHW).cpu()


def _mix(logits_BlV: Tensor, noise_BlV: Tensor, ratio: float, codebook_VZ: Tensor, shape: tuple[int, int]) -> Tensor:
    """Gumbel-softmax over the filtered codes, sharper at each scale: a map (B, Z, h, w) of mixed code vectors."""
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    weights_BlV = F.softmax((logits_BlV * (1 + ratio) + noise_BlV) / temperature, dim=-1)
    return (weights_BlV @ codebook_VZ.float()).transpose(1, 2).unflatten(2, shape)
