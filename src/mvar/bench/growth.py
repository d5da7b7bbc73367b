"""How the time per token grows with the number of tokens: one block of M-VAR, and of VAR with its key-value cache.

Shapes: B images, L tokens of all scales.
"""

import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch

from mvar.bench.cases import SEED
from mvar.bench.results import columns, measured_on, write_results
from mvar.charts import new_figure
from mvar.checkpoint.placement import Dtype, to_device
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


Growth = dict[str, dict[int, float]]  # by kind and number of tokens: microseconds per token, the median of all rounds


def bench(preset: str, dtype: Dtype, rounds: int) -> Growth:
    """Run one block of a preset's width over all scales, each kind at each length in turn.

    Raises:
        ValueError: an unknown preset, or rounds below 1.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset = {preset!r}: choose from {', '.join(PRESETS)}")
    check("rounds", rounds, Count)
    cases = [
        (kind, _block(replace(PRESETS[preset], depth=1, sides=list(sides), attention=attention, mamba=mamba), dtype))
        for sides in SCHEDULES
        for kind, (attention, mamba) in KINDS.items()
    ]
    turns = [[_run(block) for _, block in cases] for _ in track(range(rounds + 1), rounds + 1, "rounds")]
    results: Growth = {kind: {} for kind in KINDS}
    for (kind, block), (_, *seconds) in zip(cases, zip(*turns, strict=True), strict=True):  # the first turn warms up
        L = block.schedule.length
        results[kind][L] = 1e6 * median(seconds) / L
    return results


def table(results: Growth) -> str:
    """The results as lines of text: a row for each kind, and each length relative to the first."""
    rows = [["microseconds per token", *(f"L = {L}" for L in results["VAR"])]]
    for kind, of_kind in results.items():
        first = next(iter(of_kind.values()))
        rows.append([kind, *(f"{value:.2f} ({value / first:.2f}x)" for value in of_kind.values())])
    return columns(*rows)


def write(results: Growth, preset: str, dtype: str, folder: Path) -> None:
    """Write growth.json and growth.png."""
    rows = [
        {"kind": kind, "tokens": L, "microseconds": value}
        for kind, of_kind in results.items()
        for L, value in of_kind.items()
    ]
    report = {"preset": preset, "dtype": dtype, "results": rows, "machine": measured_on()}

    def draw() -> "Figure":
        figure = new_figure(6, 4)
        axes = figure.subplots()
        for kind, of_kind in results.items():
            axes.plot([*of_kind], [*of_kind.values()], marker="o", label=kind)
        axes.set(ylim=(0, None), xlabel="tokens per image", ylabel="microseconds per token")
        axes.set_title(f"One block of {preset}'s width, {dtype}")
        axes.legend(frameon=False)
        return figure

    write_results(report, folder, "growth", draw)


def _block(config: GeneratorConfig, dtype: Dtype) -> Generator:
    generator = Generator(config)
    initialise(generator, SEED)
    to_device(Tokenizer(TOKENIZERS["tiny32"]), generator, "cpu", dtype)  # any tokenizer will do
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
