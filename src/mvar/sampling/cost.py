"""The cost per image: arithmetic, the state carried between scales, and how many images fit into memory at once.

Shapes: R rows of the generator's batch, l tokens of the largest scale.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mvar.generator.config import GeneratorConfig, Mixer
from mvar.generator.network import Generator
from mvar.machine import check_memory, free_bytes
from mvar.sampling.config import UNFILTERED, SamplingSettings
from mvar.sampling.engine import Sampler
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.network import Tokenizer

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

MOST_IMAGES = 64  # at once, so that the first results do not wait for the last
FLOAT = 4  # bytes
MEMORY_FRACTION = 0.5  # of the free memory, for one batch


class Cost(NamedTuple):
    """Per image, drawn with guidance: two branches, or one for a model without classes."""

    generator_flop: int  # of matrix products and convolutions, 2 per multiply-add
    decoder_flop: int
    state_bytes: int  # carried by one branch after the last scale


def cost(tokenizer: TokenizerConfig, generator: GeneratorConfig) -> Cost:
    """Count by running both networks on torch's meta device, which needs no memory and computes nothing.

    Blocks with the same mixers cost the same, so only one or two blocks of each kind are run.
    """
    with torch.device("meta"):
        decoder = Tokenizer(tokenizer).eval()
    with _counter() as decoding:
        decoder.decode_latent(decoder.quantizer.zeros(1))
    repeats = Counter(generator.mixers)
    flop, state_bytes = once = _count(decoder, generator, list(repeats))
    for mixer, blocks in repeats.items():
        if blocks > 1:
            twice = _count(decoder, generator, [*repeats, mixer])
            flop += (blocks - 1) * (twice[0] - once[0])
            state_bytes += (blocks - 1) * (twice[1] - once[1])
    return Cost(flop, decoding.get_total_flops(), state_bytes)


def cost_facts(tokenizer: TokenizerConfig, generator: GeneratorConfig) -> dict[str, str]:
    """`cost` in words, for a list of facts."""
    found = cost(tokenizer, generator)
    guided = " with guidance" if generator.num_classes else ""
    flop = f"{found.generator_flop / 1e9:,.2f} G generator{guided}, {found.decoder_flop / 1e9:,.2f} G decoder"
    return {
        "FLOP of an image": flop,
        "State between scales": f"{found.state_bytes / 1e6:,.2f} MB a branch, float32",
    }


def _counter() -> "FlopCounterMode":
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where there is one

    return FlopCounterMode(display=False)


def _count(decoder: Tokenizer, config: GeneratorConfig, mixers: list[Mixer]) -> tuple[int, int]:
    """FLOP of an image's token maps and bytes of one branch's state, with these blocks in place of the config's."""
    attention, mamba = [mixer.attention for mixer in mixers], [mixer.mamba for mixer in mixers]
    with torch.device("meta"):
        generator = Generator(replace(config, depth=len(mixers), attention=attention, mamba=mamba)).eval()
    sampler = Sampler(decoder, generator, seed=0, settings=SamplingSettings(guidance=1.0, **UNFILTERED))
    sampler.noise = no_noise
    with _counter() as drawing:
        canvas = sampler.start(torch.tensor([0]), [0])  # of class 0, the null class of a model without classes
        for _ in range(sampler.scales):
            canvas = sampler.draw(canvas)
    branches = 2 if canvas.guided else 1
    carried = [t for block in canvas.state.blocks for part in block if part is not None for t in part]
    return drawing.get_total_flops(), sum(t.nbytes for t in carried) // branches


def no_noise(index: Sequence[int], k: int, shape: Sequence[int], at: Tensor | None, device: torch.device) -> Tensor:
    """For a sampler on the meta device, where computing noise takes longer than all products and gives no numbers."""
    return torch.empty((), device=device)


def fitting_batch(tokenizer: TokenizerConfig, generator: GeneratorConfig, device: torch.device) -> int:
    """How many images to draw at once: as many as fit into memory, 1 to 64."""
    return _fitting(peak_bytes(tokenizer, generator), device)


def fitting_rows(generator: GeneratorConfig, device: torch.device) -> int:
    """How many sequences to score at once: as many as fit into memory, 1 to 64."""
    return _fitting(FLOAT * generator.schedule.length * (_hidden(generator) + 3 * generator.vocab_size), device)


def _fitting(each: int, device: torch.device) -> int:
    return int(max(1, min(MOST_IMAGES, MEMORY_FRACTION * free_bytes(device) // each)))


def check_images(count: int, image_shape: tuple[int, int], field: str, each: int = FLOAT) -> None:
    """Raise ValueError for more images of (height, width) than fit into memory at once.

    `field` is the option that asks for them, `each` the bytes of a number.
    """
    height, width = image_shape
    what = f"{field}: {count:,} images of {width}x{height} pixels"
    check_memory(each * 3 * count * height * width, what, "ask for fewer at once")


def check_batch(tokenizer: TokenizerConfig, generator: GeneratorConfig, images: int, device: torch.device) -> None:
    """Refuse to draw more images at once than fit into memory; raises as `check_images`."""
    needed = images * peak_bytes(tokenizer, generator)
    check_memory(needed, f"batch_size = {images:,}: so many images at once", "give fewer, or leave it out", device)


def peak_bytes(tokenizer: TokenizerConfig, generator: GeneratorConfig) -> int:
    """An upper estimate of an image's memory: the generator at its widest, its key-value cache, the decoder's end."""
    height, width = tokenizer.image_shape
    decoder = 8 * tokenizer.channels * max(tokenizer.multipliers[:2]) * height * width
    R, C, l = 2, generator.width, max(generator.schedule.areas)
    hidden = R * l * _hidden(generator)
    logits = 8 * l * generator.vocab_size  # two branches, guided, filtered, sorted, noise
    carried = {"global": generator.schedule.length, "recent": l}  # tokens whose keys and values a block carries
    cached = sum(carried.get(mixer.attention, 0) for mixer in generator.mixers) * R * 2 * C
    return FLOAT * (max(decoder, hidden + logits) + 2 * cached)


def _hidden(generator: GeneratorConfig) -> int:
    """Numbers per token where a block is widest: tokens, MLP, Mamba's projections and their products."""
    directions = 2 if generator.scan == "bidirectional" else 1
    return generator.width * (6 + 2 * generator.mlp_ratio + 16 * directions)
