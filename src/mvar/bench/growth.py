"""How the time per token grows with the number of tokens: one block of M-VAR, and of VAR with its key-value cache.

Shapes: B images, L tokens of all scales.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from mvar.bench.measuring import SEED, take_turns
from mvar.bench.results import columns
from mvar.charts import new_figure
from mvar.checkpoint.placement import Dtype, to_device
from mvar.generator.config import PRESETS, Attention, GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.scales import SIDES_256, SIDES_512
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


def bench(preset: str, dtype: Dtype, rounds: int) -> dict[str, Any]:
    """Run one block of a preset's width over all scales, each kind at each length in turn.

    Raises:
        ValueError: an unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset = {preset!r}: choose from {', '.join(PRESETS)}")
    cases = {}
    for sides in SCHEDULES:
        for kind, (attention, mamba) in KINDS.items():
            config = replace(PRESETS[preset], depth=1, sides=list(sides), attention=attention, mamba=mamba)
            cases[kind, config.schedule.length] = partial(_run, _block(config, dtype))
    rows = [
        {"kind": kind, "tokens": L, "microseconds": 1e6 * median(seconds) / L}
        for (kind, L), seconds in take_turns(cases, rounds).items()
    ]
    return {"preset": preset, "dtype": dtype, "results": sorted(rows, key=lambda row: [*KINDS].index(row["kind"]))}


def table(report: Mapping[str, Any]) -> str:
    """The report as lines of text: a row for each kind, and each length relative to the first."""
    rows = []
    for kind, of_kind in _lines(report).items():
        first = next(iter(of_kind.values()))
        rows.append([kind, *(f"{value:.2f} ({value / first:.2f}x)" for value in of_kind.values())])
    return columns(["microseconds per token", *(f"L = {L}" for L in of_kind)], *rows)


def plot(report: Mapping[str, Any]) -> "Figure":
    """A line for each kind."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for kind, of_kind in _lines(report).items():
        axes.plot([*of_kind], [*of_kind.values()], marker="o", label=kind)
    axes.set(ylim=(0, None), xlabel="tokens per image", ylabel="microseconds per token")
    axes.set_title(f"One block of {report['preset']}'s width, {report['dtype']}")
    axes.legend(frameon=False)
    return figure


def _lines(report: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Microseconds by kind and number of tokens."""
    lines: dict[str, dict[int, float]] = {kind: {} for kind in KINDS}
    for row in report["results"]:
        lines[row["kind"]][row["tokens"]] = row["microseconds"]
    return lines


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
