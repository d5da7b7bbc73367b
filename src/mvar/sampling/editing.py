"""New images from a given one: repaint a part of it, or keep its coarse maps and draw the finer ones again.

Shapes: B results, Z latent channels, H W pixels or the finest sides, h w cells of a token map, P tokens of a scale.
Source: zero-shot editing of VAR (Tian et al. 2024), section 5.4; the re-encoded mode is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from PIL import Image
from torch import Tensor

from mvar.sampling.concurrency import turn
from mvar.sampling.config import EditMode
from mvar.sampling.engine import OnScale, SampleOutput, Sampler
from mvar.sampling.masks import Drift, drift, kept_cells, resized


@dataclass(frozen=True)
class EditOutput(SampleOutput):
    """What editing returns besides pixels and tokens.

    Attributes:
        kept: for each scale, which cells stayed, bool (h, w).
        drift: how much pixels outside the hole changed, by distance from it, before any pasting.
        pasted: see `mvar.sampling.masks.pasted`; None where nothing is pasted.
    """

    kept: list[Tensor]
    drift: list[Drift]
    pasted: list[Image.Image] | None = None

    @property
    def images(self) -> list[Image.Image]:
        """The results: pasted in the image's own size, mode and profile, else the pixels as 8-bit RGB."""
        return super().images if self.pasted is None else self.pasted


def edit(
    sampler: Sampler,
    pixels_13HW: Tensor,
    hole_HW: Tensor,
    labels_B: Tensor,
    index: Sequence[int],
    mode: EditMode,
    batch_size: int,
    on_scale: OnScale | None = None,
) -> EditOutput:
    """Repaint the hole; cells that do not touch it stay.

    Args:
        pixels_13HW: the image in [0, 1], of the model's size.
        hole_HW: bool, of any size, true where to repaint.
        labels_B: each result's class; the null class leaves it to the surroundings.
        index: each result's number.
        mode: what kept cells hold. "own": the image's own tokens. "reencode": at each scale the codes nearest to what
            the mixed f_hat still lacks of the image, averaged over the part that stays, so that they correct what
            repainted coarse cells spilled over the border and take nothing from inside the hole.
    """
    if mode not in get_args(EditMode):
        raise ValueError(f"mode = {mode!r}: choose from {', '.join(get_args(EditMode))}")
    tokenizer, quantizer = sampler.tokenizer, sampler.tokenizer.quantizer
    device = quantizer.codebook.device
    hole_HW = resized(hole_HW, tokenizer.config.image_shape)
    kept = kept_cells(hole_HW, quantizer.schedule)
    with torch.no_grad(), turn():
        f_1ZHW = tokenizer.latent(pixels_13HW.to(device))
        own = quantizer.encode(f_1ZHW)
    stays_11HW = kept[-1][None, None].float().to(device)
    kept_1P = [kept_hw.flatten()[None].to(device) for kept_hw in kept]

    def keep(k: int, f_hat_BZHW: Tensor) -> tuple[Tensor, Tensor]:
        if mode == "own":
            return kept_1P[k], own[k].expand(len(f_hat_BZHW), -1)
        lacking_BZhw = quantizer.input_of((f_1ZHW - f_hat_BZHW) * stays_11HW, k)
        weight_11hw = quantizer.input_of(stays_11HW, k).clamp(min=1e-6)
        return kept_1P[k], quantizer.nearest(lacking_BZhw / weight_11hw, k)

    out = sampler.in_batches(
        len(index), batch_size, lambda part: sampler.start(labels_B[part], index[part]), on_scale, keep
    )
    with turn():
        restored_3HW = tokenizer.decode(own)[0].cpu()
    rings = drift(out.pixels, pixels_13HW[0].cpu(), restored_3HW, hole_HW)
    return EditOutput(out.pixels, out.tokens, kept, rings)


def vary(
    sampler: Sampler,
    maps: Sequence[Tensor],
    labels_1: Tensor,
    index: Sequence[int],
    from_scale: int,
    batch_size: int,
    on_scale: OnScale | None = None,
) -> SampleOutput:
    """Keep the first `from_scale` maps of an image, and draw the others again for each number of `index`.

    The kept maps run through the generator once; the results are forks of the state after them.

    Args:
        maps: the image's token maps, (1, P_k) or (P_k,) each; the first `from_scale` are used.
        labels_1: its class.

    Raises:
        ValueError: `from_scale` out of range, or maps of several images or too few.
    """
    if not 0 <= from_scale < sampler.scales:
        raise ValueError(f"from_scale = {from_scale}: give 0 (keep nothing) to {sampler.scales - 1}")
    if len(maps) < from_scale:
        raise ValueError(f"from_scale = {from_scale}: {len(maps)} token maps are given")
    maps = [tokens_P[None] if tokens_P.dim() == 1 else tokens_P for tokens_P in maps]
    if more := [len(tokens_BP) for tokens_BP in maps if len(tokens_BP) != 1]:
        raise ValueError(f"image: these are token maps of {more[0]} images; give those of one")
    prefix = sampler.follow(sampler.start(labels_1, index[:1]), maps[:from_scale])
    return sampler.in_batches(len(index), batch_size, lambda part: prefix.fork(index[part]), on_scale)
