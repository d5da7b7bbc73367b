"""How the time of a token grows with the number of tokens: one block of M-VAR, and of VAR with its key-value cache.

Shapes: B images, L tokens of all scales.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mvar import __version__
from mvar.bench.cases import SEED
from mvar.checkpoint.placement import Dtype, to_device
from mvar.files import atomic_write, write_text
from mvar.generator.config import PRESETS, Attention, GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.machine import machine
from mvar.progress import track
from mvar.scales import SIDES_256, SIDES_512
from mvar.settings import Count, check
from mvar.tokenizer.config import PRESETS as TOKENIZERS
from mvar.tokenizer.network import Tokenizer

# Sides for 256, 512 and 1024 pixels; the last are twice those of 512.
SCHEDULES = (SIDES_256, SIDES_512, tuple(2 * side for side in SIDES_512))
# Attention and whether there is a Mamba.
KINDS: dict[str, tuple[Attention, bool]] = {
    "M-VAR": ("intra", True),
    "M-VAR without attention": ("none", True),
    "VAR": ("global", False),
}
RESULTS, CHART = "growth.json", "growth.png"


@dataclass(frozen=True, kw_only=True)
class Growth:
    """One kind of block at one number of tokens; microseconds a token of one image, the median of all rounds."""

    kind: str
    tokens: int
    microseconds: float


def bench(preset: str, dtype: Dtype, rounds: int) -> list[Growth]:
    """Run one block of a preset's width over all scales, each kind at each length in turn.

    Raises:
        ValueError: an unknown preset, or rounds below 1.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset = {preset!r}: choose from {', '.join(PRESETS)}")
    check("rounds", rounds, Count)
    cases = {}
    for sides in SCHEDULES:
        for kind, (attention, mamba) in KINDS.items():
            config = replace(PRESETS[preset], depth=1, sides=list(sides), attention=attention, mamba=mamba)
            cases[kind, config.schedule.length] = _block(config, dtype)
    taken: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for turn in track(range(rounds + 1), rounds + 1, "rounds"):
        for case, generator in cases.items():
            seconds = _run(generator)
            if turn > 0:  # the first warms up
                taken[case].append(seconds)
    return [Growth(kind=kind, tokens=L, microseconds=1e6 * median(seconds) / L) for (kind, L), seconds in taken.items()]


def table(results: Sequence[Growth]) -> str:
    """The results as lines of text: a row a kind, and how each length compares to the first."""
    lengths = sorted({result.tokens for result in results})
    lines = [f"{'microseconds a token':<26}" + "".join(f"{f'L = {L}':>18}" for L in lengths)]
    for kind in KINDS:
        of_kind = {result.tokens: result.microseconds for result in results if result.kind == kind}
        cells = [f"{of_kind[L]:.2f} ({of_kind[L] / of_kind[lengths[0]]:.2f}x)" for L in lengths]
        lines.append(f"{kind:<26}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def write(results: Sequence[Growth], preset: str, dtype: str, folder: Path) -> None:
    """Write growth.json and growth.png."""
    from matplotlib.figure import Figure

    report: dict[str, Any] = {"preset": preset, "dtype": dtype}
    report |= {"results": [asdict(result) for result in results], "machine": {"mvar": __version__, **machine()}}
    write_text(folder / RESULTS, json.dumps(report, indent=2) + "\n")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for kind in KINDS:
        of_kind = sorted((result.tokens, result.microseconds) for result in results if result.kind == kind)
        axes.plot(*zip(*of_kind, strict=True), marker="o", label=kind)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens of an image")
    axes.set_ylabel("microseconds a token")
    axes.set_title(f"One block of {preset}'s width, {dtype}")
    axes.legend(frameon=False)
    atomic_write(folder / CHART, lambda partial: figure.savefig(partial, dpi=120))


def _block(config: GeneratorConfig, dtype: Dtype) -> Generator:
    generator = Generator(config)
    initialise(generator, SEED)
    to_device(Tokenizer(TOKENIZERS["tiny32"]), generator, "cpu", dtype)  # it wants one; another's is as good
    return generator


@torch.no_grad()
def _run(generator: Generator) -> float:
    """Seconds of the block alone, scale by scale."""
    (block,) = generator.each_block()
    modulation_BRC = generator.modulation(torch.tensor([0])).blocks[0]
    state, seconds = block.initial_state(1), 0.0
    rng = torch.Generator().manual_seed(SEED)
    for area in generator.schedule.areas:
        x_BlC = torch.randn(1, area, generator.config.width, generator=rng)
        start = time.perf_counter()
        _, state = block(x_BlC, modulation_BRC, state, (area,))
        seconds += time.perf_counter() - start
    return seconds
