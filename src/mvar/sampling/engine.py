"""The scale loop: from labels to token maps to images; each scale's map is drawn at once, coarse to fine.

Shapes: B images, R rows of the generator's batch (B, or 2B with the unconditional branch), V codes, Z latent channels;
P tokens of a scale, l tokens of this call, c candidate codes, h w a scale's sides, H W the finest sides or pixels.
Source: VAR (Tian et al. 2024), sections 3 and 4; M-VAR carries its Mamba state from scale to scale.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mvar.generator.network import Generator
from mvar.generator.state import GeneratorState
from mvar.machine import send
from mvar.ops.filtering import candidates, guide, spread_out
from mvar.ops.noise import gumbel
from mvar.ops.numerics import CAUSE, REMEDY, all_finite
from mvar.sampling.canvas import Canvas, Rows
from mvar.sampling.concurrency import current_dispatcher, turn
from mvar.sampling.config import SamplingSettings, scale_ratio
from mvar.sampling.graphs import Graphs
from mvar.scales import ScaleSchedule
from mvar.tokenizer.network import Tokenizer
from mvar.tokenizer.quantizer import MultiScaleQuantizer

# Called after each scale with k, K and a function that decodes the images so far to pixels (B, 3, H, W).
OnScale = Callable[[int, int, Callable[[], Tensor]], None]
# What is kept of scale k: from k and f_hat (B, Z, H, W), which cells, bool (B, P) or (1, P), and their tokens (B, P).
Keep = Callable[[int, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SampleOutput:
    """What sampling returns.

    Attributes:
        pixels: (B, 3, H, W) float32 in [0, 1], on the CPU.
        tokens: one LongTensor (B, P_k) per scale, on the CPU; None for smooth samples, which have none.
    """

    pixels: Tensor
    tokens: list[Tensor] | None

    @property
    def images(self) -> list[Image.Image]:
        """The pixels as 8-bit RGB images, rounded to nearest."""
        return to_images(self.pixels)

    def select(self, rows: Tensor) -> "SampleOutput":
        """The images at these positions, in that order."""
        return SampleOutput(self.pixels[rows], None if self.tokens is None else [maps[rows] for maps in self.tokens])


class Sampler:
    """Draws images by one model, with one seed and one set of settings.

    `sample` does it all; `start`, `follow`, `draw` and `finish` are its steps, to stop or fork between scales.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        generator: Generator,
        seed: int,
        settings: SamplingSettings,
        graphs: Graphs | None = None,
    ) -> None:
        """Args:
            tokenizer, generator: of the same schedule and codebook, in eval mode, on one device.
            seed: of the run, 0 to 2**64 - 1.
            settings: guidance and filters.
            graphs: recordings of these networks, to be used where `finish` can.

        Raises:
            ValueError: settings that are lists of another length than the schedule.
        """
        self.tokenizer, self.generator, self.seed, self.graphs = tokenizer, generator, seed, graphs
        self.noise: Callable[..., Tensor] = partial(gumbel, seed)
        self.scales = len(tokenizer.quantizer.schedule)
        settings.check(self.scales)
        self.settings = settings
        self.guidance, self.filters = settings.guidance_weights(self.scales), settings.filters(self.scales)

    @torch.no_grad()
    def start(self, labels_B: Tensor, index: Sequence[int]) -> Canvas:
        """The empty canvas.

        Args:
            labels_B: class indices; num_classes is the null class.
            index: each image's own number: image i depends on (seed, index[i], labels_B[i], settings) only.
        """
        null = self.generator.config.num_classes
        labels_R = labels_B.cpu()
        # Guidance between two equal branches changes nothing: if no image has a class, one branch is enough.
        if any(self.guidance) and bool((labels_R != null).any()):
            labels_R = torch.cat((labels_R, torch.full_like(labels_R, null)))
        modulation = self.generator.modulation(send(labels_R, self.generator.head.weight.device))
        state = self.generator.initial_state(len(labels_R))
        return Canvas(tuple(index), modulation, state, self.tokenizer.quantizer.zeros(len(labels_B)))

    @torch.no_grad()
    def follow(self, canvas: Canvas, maps: Sequence[Tensor]) -> Canvas:
        """The canvas after these next token maps, (B, P_k) each, run through the generator all at once.

        Raises:
            ValueError: more maps than scales are left, or of another number of images than the canvas.
        """
        if not maps:
            return canvas
        quantizer, B = self.tokenizer.quantizer, len(canvas.index)
        scales = range(canvas.scales, canvas.scales + len(maps))
        if scales.stop > self.scales:
            raise ValueError(f"maps: {len(maps)} given, {self.scales - canvas.scales} of {self.scales} are missing")
        if wrong := [len(tokens_BP) for tokens_BP in maps if len(tokens_BP) != B]:
            raise ValueError(f"maps: are of {wrong[0]} images, the canvas has {B}")
        if canvas.guided and not self.guides(scales.stop):
            canvas = canvas.unguided()
        f_hat_BZHW, inputs, tokens = canvas.f_hat_BZHW, [], list(canvas.tokens)
        for k, tokens_BP in zip(scales, maps, strict=True):
            inputs.append(_input(quantizer, f_hat_BZHW, k))
            tokens.append(tokens_BP.to(f_hat_BZHW.device))
            f_hat_BZHW = quantizer.add(f_hat_BZHW, quantizer.lookup(tokens[-1], k), k)
        inputs_RlZ = torch.cat([torch.cat(inputs, dim=1)] * (1 + canvas.guided))
        with turn():
            x_RlC = self.generator.embed(inputs_RlZ, canvas.modulation, scales)
            _, state = self.generator.step(x_RlC, canvas.modulation, canvas.state, scales, 0)
        return replace(canvas, state=state, f_hat_BZHW=f_hat_BZHW, tokens=tuple(tokens))

    def draw(self, canvas: Canvas, keep: Keep | None = None) -> Canvas:
        """The canvas with one more map; `keep` says which of its cells are kept instead of drawn.

        Raises:
            FloatingPointError: logits that are not finite; see `check_logits`.
        """
        drawing, dispatcher = Drawing(self, canvas, keep), current_dispatcher()
        if dispatcher is not None:
            return dispatcher.draw(drawing)
        (drawn,) = draw_together([drawing])
        if isinstance(drawn, FloatingPointError):
            raise drawn
        return drawn

    def guides(self, k: int) -> bool:
        """Whether any scale from k on is guided; without, the unconditional branch is not needed any more."""
        return any(self.guidance[k:])

    def choose(
        self,
        canvas: Canvas,
        logits_BlV: Tensor,
        unconditional_BlV: Tensor | None,
        state: GeneratorState,
        keep: Keep | None,
    ) -> Canvas:
        """The canvas with its next map.

        Args:
            logits_BlV, unconditional_BlV: of the two branches; the second is None where this scale is not guided.
            state: after this scale.
            keep: which cells are kept, and what they hold.

        Raises:
            FloatingPointError: logits that are not finite.
        """
        quantizer, k = self.tokenizer.quantizer, canvas.scales
        if unconditional_BlV is not None:
            logits_BlV = guide(logits_BlV, unconditional_BlV, self.guidance[k])
        temperature, most, mass = self.filters[k]
        logits_BlV = logits_BlV / temperature
        if logits_BlV.device.type == "cpu":
            check_logits(logits_BlV, quantizer.schedule, range(k, k + 1))
            finite = canvas.finite
        else:  # without waiting for the GPU
            finite = canvas.finite | {k: logits_BlV.isfinite().all()}
        values_Blc, codes_Blc = candidates(logits_BlV, most, mass)
        noise_Blc = self.noise(canvas.index, k, logits_BlV.shape[1:], codes_Blc, values_Blc.device)

        best_Bl1 = (values_Blc + noise_Blc).argmax(-1, keepdim=True)
        tokens_BP = (best_Bl1 if codes_Blc is None else codes_Blc.gather(-1, best_Bl1))[..., 0]
        if self.settings.smooth:
            codes_BZhw = self._mix(values_Blc, noise_Blc, codes_Blc, k)
        kept = None if keep is None else keep(k, canvas.f_hat_BZHW)
        if kept is not None:
            tokens_BP = torch.where(*kept, tokens_BP)
        if not self.settings.smooth:
            codes_BZhw = quantizer.lookup(tokens_BP, k)
        elif kept is not None:
            kept_B1hw = kept[0].unflatten(1, (1, *codes_BZhw.shape[2:]))
            codes_BZhw = torch.where(kept_B1hw, quantizer.lookup(tokens_BP, k), codes_BZhw)
        f_hat_BZHW = quantizer.add(canvas.f_hat_BZHW, codes_BZhw, k)
        tokens = () if self.settings.smooth else (*canvas.tokens, tokens_BP)
        return replace(canvas, state=state, f_hat_BZHW=f_hat_BZHW, tokens=tokens, finite=finite)

    def finish(self, canvas: Canvas, on_scale: OnScale | None = None, keep: Keep | None = None) -> SampleOutput:
        """Draw all missing maps, and decode; see `OnScale` and `Keep`."""
        recorded = None
        if self.graphs is not None and keep is None and current_dispatcher() is None:
            recorded = self.graphs.finish(self, canvas, on_scale)
        if recorded is not None:
            canvas, decoded_B3HW = recorded
        else:
            for k in range(canvas.scales, self.scales):
                canvas = self.draw(canvas, keep)
                if on_scale is not None:
                    on_scale(k, self.scales, partial(self.pixels, canvas))
            with torch.no_grad(), turn():
                decoded_B3HW = self.tokenizer.decoded(canvas.f_hat_BZHW)
        for k, finite in canvas.finite.items():
            if not finite:
                raise FloatingPointError(_not_finite(self.tokenizer.quantizer.schedule, k))
        pixels_B3HW = self.tokenizer.to_pixels(decoded_B3HW).cpu()
        tokens = None if self.settings.smooth else [tokens_BP.cpu() for tokens_BP in canvas.tokens]
        return SampleOutput(pixels_B3HW, tokens)

    def sample(self, labels_B: Tensor, index: Sequence[int], on_scale: OnScale | None = None) -> SampleOutput:
        """Draw one image per label; arguments and errors are those of `start` and `finish`."""
        return self.finish(self.start(labels_B, index), on_scale)

    def in_batches(
        self,
        count: int,
        size: int,
        begin: Callable[[slice], Canvas],
        on_scale: OnScale | None = None,
        keep: Keep | None = None,
    ) -> SampleOutput:
        """Finish `count` images, at most `size` at once; `begin` gives the canvas of a slice of them."""
        return concatenated([self.finish(begin(part), on_scale, keep) for part in batches(count, size)])

    def pixels(self, canvas: Canvas) -> Tensor:
        """The images as they are so far, (B, 3, H, W) in [0, 1] on the CPU."""
        with turn():
            return self.tokenizer.decode_latent(canvas.f_hat_BZHW).cpu()

    def _mix(self, values_Blc: Tensor, noise_Blc: Tensor, codes_Blc: Tensor | None, k: int) -> Tensor:
        """Gumbel-softmax over the filtered codes, sharper at each scale: a map (B, Z, h, w) of mixed code vectors."""
        quantizer, ratio = self.tokenizer.quantizer, scale_ratio(k, self.scales)
        temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
        weights_Blc = F.softmax((values_Blc * (1 + ratio) + noise_Blc) / temperature, dim=-1)
        codebook_VZ = quantizer.codebook.float()
        mixed_BlZ = spread_out(weights_Blc, codes_Blc, len(codebook_VZ), elsewhere=0.0) @ codebook_VZ
        return mixed_BlZ.transpose(1, 2).unflatten(2, quantizer.schedule.shapes[k])


class Drawing(NamedTuple):
    """Whose next map is drawn: a canvas, what draws it, and which cells it keeps."""

    sampler: Sampler
    canvas: Canvas
    keep: Keep | None = None


@torch.no_grad()
def draw_together(drawings: Sequence[Drawing]) -> list[Canvas | FloatingPointError]:
    """Each canvas with one more map, all by one step of the generator.

    Args:
        drawings: after the same number of scales, by samplers of the same networks; seeds and settings may differ.

    Returns:
        For each, the canvas, or why it has none: logits that are not finite, which leave the others as they are.
    """
    tokenizer, generator = networks = _networks(drawings[0].sampler)
    k = drawings[0].canvas.scales
    if any(canvas.scales != k or _networks(sampler) != networks for sampler, canvas, _ in drawings):
        raise ValueError("drawings: are of several scales or models; draw these apart")
    canvases = [canvas if sampler.guides(k) else canvas.unguided() for sampler, canvas, _ in drawings]
    rows = Rows.of(canvases)
    words_BlZ = _input(tokenizer.quantizer, _joined([canvas.f_hat_BZHW for canvas in canvases]), k)
    others = [words_BlZ[rows.conditional[i]] for i, canvas in enumerate(canvases) if canvas.guided]
    x_RlC = generator.embed(_joined([words_BlZ, *others]), rows.modulation, range(k, k + 1))
    guided = [
        canvas.guided and sampler.guidance[k] != 0 for canvas, (sampler, *_) in zip(canvases, drawings, strict=True)
    ]
    # Where no canvas is guided at this scale, the unconditional branches only fill their state.
    head_rows = None if any(guided) else len(words_BlZ)
    logits_RlV, state = generator.step(x_RlC, rows.modulation, rows.state, range(k, k + 1), head_rows)

    drawn: list[Canvas | FloatingPointError] = []
    for i, ((sampler, _, keep), canvas, after) in enumerate(zip(drawings, canvases, rows.split(state), strict=True)):
        unconditional_BlV = logits_RlV[rows.unconditional[i]] if guided[i] else None
        try:
            drawn.append(sampler.choose(canvas, logits_RlV[rows.conditional[i]], unconditional_BlV, after, keep))
        except FloatingPointError as error:
            drawn.append(error)
    return drawn


def _networks(sampler: Sampler) -> tuple[Tokenizer, Generator]:
    return sampler.tokenizer, sampler.generator


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after another along the first dimension, without a copy if there is only one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _input(quantizer: MultiScaleQuantizer, f_hat_BZHW: Tensor, k: int) -> Tensor:
    """What scale k is predicted from, (B, P_k, Z); nothing at the first scale, which starts from the class."""
    words_BlZ = quantizer.input_of(f_hat_BZHW, k).flatten(2).transpose(1, 2)
    return words_BlZ if k > 0 else words_BlZ[:, :0]


def check_logits(logits_BlV: Tensor, schedule: ScaleSchedule, scales: range) -> None:
    """Refuse logits of all tokens of `scales` that are not finite: sorting puts NaN first.

    Raises:
        FloatingPointError: NaN or infinity; one line that names the first scale with any.
    """
    if all_finite(logits_BlV):
        return
    finite_l = logits_BlV.isfinite().all(-1).all(0)
    levels = [k for k in scales for _ in range(schedule.areas[k])]
    raise FloatingPointError(_not_finite(schedule, levels[finite_l.tolist().index(False)]))


def _not_finite(schedule: ScaleSchedule, k: int) -> str:
    h, w = schedule.shapes[k]
    return f"scale {k} ({h}x{w}): the generator gives NaN or infinity: {CAUSE}; {REMEDY}"


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(count)."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def concatenated(parts: Sequence[SampleOutput]) -> SampleOutput:
    """The images of several outputs of the same settings, one after another."""
    maps = [part.tokens for part in parts if part.tokens is not None]
    tokens = [torch.cat(tokens) for tokens in zip(*maps, strict=True)] if maps else None
    return SampleOutput(torch.cat([part.pixels for part in parts]), tokens)


def to_uint8(pixels_B3HW: Tensor) -> np.ndarray:
    """Pixels in [0, 1] as a uint8 array (B, H, W, 3), rounded to nearest."""
    return (255 * pixels_B3HW.float().cpu()).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def to_images(pixels_B3HW: Tensor) -> list[Image.Image]:
    """Pixels in [0, 1] as 8-bit RGB images, rounded to nearest."""
    return [Image.fromarray(array) for array in to_uint8(pixels_B3HW)]
