"""How the time per token grows with the number of tokens: one block of M-VAR, and of VAR with its key-value cache.

Shapes: B images, L tokens of all scales.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from mvar.bench.cases import SEED
from mvar.bench.results import columns, measured_on, write_results
from mvar.charts import new_figure
from mvar.checkpoint.placement import Dtype, place
from mvar.generator.config import PRESETS, Attention, GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.progress import track
from mvar.scales import SIDES_256, SIDES_512
from mvar.settings import Count, check
from mvar.tokenizer.config import PRESETS as TOKENIZERS
from mvar.tokenizer.network import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Sides for 256, 512 and 1024 pixels; the last are twice those of 512.
SCHEDULES = (SIDES_256, SIDES_512, tuple(2 * side for side in SIDES_512))
# Attention and whether there is a Mamba.
KINDS: dict[str, tuple[Attention, bool]] = {
    "M-VAR": ("intra", True),
    "M-VAR without attention": ("none", True),
    "VAR": ("global", False),
}


@dataclass(frozen=True, kw_only=True)
class Growth:
    """One kind of block at one number of tokens; microseconds per token of one image, the median of all rounds."""

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
    """The results as lines of text: a row for each kind, and each length relative to the first."""
    rows = [["microseconds per token", *(f"L = {L}" for L in _lengths(results, "M-VAR"))]]
    for kind in KINDS:
        of_kind = _lengths(results, kind)
        first = next(iter(of_kind.values()))
        rows.append([kind, *(f"{value:.2f} ({value / first:.2f}x)" for value in of_kind.values())])
    return columns(*rows)


def write(results: Sequence[Growth], preset: str, dtype: str, folder: Path) -> None:
    """Write growth.json and growth.png."""
    report = {"preset": preset, "dtype": dtype, "results": [asdict(r) for r in results], "machine": measured_on()}

    def draw() -> "Figure":
        figure = new_figure(6, 4)
        axes = figure.subplots()
        for kind in KINDS:
            of_kind = _lengths(results, kind)
            axes.plot([*of_kind], [*of_kind.values()], marker="o", label=kind)
        axes.set(ylim=(0, None), xlabel="tokens per image", ylabel="microseconds per token")
        axes.set_title(f"One block of {preset}'s width, {dtype}")
        axes.legend(frameon=False)
        return figure

    write_results(report, folder, "growth", draw)


def _lengths(results: Sequence[Growth], kind: str) -> dict[int, float]:
    """Microseconds by the number of tokens, ascending."""
    return dict(sorted((result.tokens, result.microseconds) for result in results if result.kind == kind))


def _block(config: GeneratorConfig, dtype: Dtype) -> Generator:
    generator = Generator(config)
    initialise(generator, SEED)
    place(Tokenizer(TOKENIZERS["tiny32"]), generator, "cpu", dtype)  # any tokenizer will do
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
