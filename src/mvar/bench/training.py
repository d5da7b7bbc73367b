"""What one training step of a generator takes: tokens per second, peak memory and the share of the machine's best
product rate, against simpler ways and against VAR.

Every case runs in a process of its own, whose peak memory is then that of the case. A preset and VAR take turns, so
that other load on the machine affects them alike; the machine's best is measured between their steps.

Shapes: B images, L tokens, l those after the first scale, Z latent channels, U random numbers per image.
"""

import multiprocessing
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mvar.bench.measuring import SEED, Peaks, take_turns
from mvar.bench.results import bar_chart, columns
from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.machine import check_memory, peak_bytes
from mvar.training.config import GeneratorTraining
from mvar.training.generator.loss import GeneratorLoss
from mvar.training.generator.task import decays
from mvar.training.optim import autocast, build_optimizer
from mvar.training.task import STATE_BYTES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACTIVATION_BYTES = 128  # per token, block and unit of width: what the backward pass needs, at most
PROCESS_BYTES = 2**29  # of a process that has imported torch
PASSES = 3  # forward and backward in units of the forward pass: a product's gradients are two products of its size
WARM_UP = 2  # steps: the first makes the optimizer's state, both touch memory that later ones find in place
BASELINE = "VAR"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    config: GeneratorConfig
    batch_size: int  # images per step
    dtype: str  # of the matrix products
    activation_checkpointing: bool = False
    full_logits: bool = False  # cross-entropy by plain autograd from all logits at once


class Step(NamedTuple):
    """One training step."""

    seconds: float
    peak_bytes: int  # largest resident set of the process so far
    loss: float


class Network(NamedTuple):
    """What is counted of a generator."""

    parameters: int
    flop: int


def bench(preset: str, batch_size: int, dtype: str, steps: int) -> dict[str, Any]:
    """Measure every case of a preset.

    Returns:
        How and where it was measured, and for each case: parameters, speed by the median step, peak memory, seconds of
        each step, FLOP of a step (see `_count`), their rate as a share of the best square product's, and the median
        ratio of its steps to VAR's, None where they did not take turns.

    Raises:
        ValueError: an unknown preset, too little free memory, or a case whose process ended.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset = {preset!r}: choose from {', '.join(PRESETS)}")
    groups = _groups(preset, batch_size, dtype)
    counted = {name: count(case.config, batch_size) for name, case in groups[0].items()}
    networks = {name: counted[name.partition(",")[0]] for group in groups for name in group}
    needed = (sum(_needed(case, networks[name].parameters) for name, case in group.items()) for group in groups)
    what = "preset, batch_size: weights, gradients, Adam and activations"
    check_memory(max(needed), what, "give a smaller preset or batch")
    peaks = Peaks(getattr(torch, dtype))
    taken: dict[str, list[Step]] = {}
    for group in groups:
        with ExitStack() as stack:
            runs = {name: partial(_step, name, stack.enter_context(_process(case))) for name, case in group.items()}
            taken |= take_turns(runs, steps, WARM_UP, [peaks])
    results = []
    for group in groups:
        for name, case in group.items():
            rival = name.replace(preset, BASELINE, 1)
            others = taken[rival] if rival in group else None
            results.append(_result(name, case, networks[name], taken[name], others, peaks.matmul_flops))
    how = {"preset": preset, "batch_size": batch_size, "dtype": dtype, "steps": steps}
    return {**how, "took_turns": [[*group] for group in groups], "matmul_flops": peaks.matmul_flops, "results": results}


def table(report: Mapping[str, Any]) -> str:
    """The report as lines of text."""
    rows = [["", "s", "tokens/s", "images/s", "of peak", "x VAR", "peak GB", "weights, gradients, Adam: GB"]]
    for r in report["results"]:
        speed = [f"{median(r['seconds']):.2f}", f"{r['tokens_per_second']:,.0f}", f"{r['images_per_second']:.2f}"]
        relative = [f"{r['utilisation']:.0%}", f"{r['ratio']:.2f}" if r["ratio"] else ""]
        memory = [f"{r['peak_bytes'] / 1e9:.2f}", f"{STATE_BYTES * r['parameters'] / 1e9:.2f}"]
        rows.append([r["name"], *speed, *relative, *memory])
    return columns(*rows)


def plot(report: Mapping[str, Any]) -> "Figure":
    """Bars of speed, utilisation and memory."""
    results = report["results"]
    panels = {
        "tokens per second": [r["tokens_per_second"] for r in results],
        "% of the best product's rate": [100 * r["utilisation"] for r in results],
        "peak memory, GB": [r["peak_bytes"] / 1e9 for r in results],
    }
    return bar_chart([r["name"] for r in results], panels)


def _groups(preset: str, batch_size: int, dtype: str) -> list[dict[str, Case]]:
    """What takes turns: the default and VAR, both again with checkpointing; then the default with full logits."""
    ours = Case(config=PRESETS[preset], batch_size=batch_size, dtype=dtype)
    plain = {preset: ours}
    baseline = replace(ours.config, attention="global", mamba=False)
    if baseline != ours.config:
        plain[BASELINE] = replace(ours, config=baseline)
    again = {f"{name}, checkpointing": replace(case, activation_checkpointing=True) for name, case in plain.items()}
    return [plain, again, {f"{preset}, full logits": replace(ours, full_logits=True)}]


def _needed(case: Case, parameters: int) -> int:
    """About the memory that a case's process takes."""
    config, tokens = case.config, case.batch_size * case.config.schedule.length
    return PROCESS_BYTES + STATE_BYTES * parameters + ACTIVATION_BYTES * tokens * config.depth * config.width


def count(config: GeneratorConfig, B: int) -> Network:
    """Parameters, and the model arithmetic of one step: three times the forward pass, no recomputation.

    2 per multiply-add, in all products: with weights, of tokens with tokens in attention and in the scan's chunks, and
    of the short convolution; counted by running the network on torch's meta device.
    """
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        generator = Generator(config).eval()
        l = generator.schedule.length - generator.schedule.areas[0]
        generator(torch.zeros(B, dtype=torch.long), torch.empty(B, l, config.latent_channels))
    return Network(sum(p.numel() for p in generator.parameters()), PASSES * counter.get_total_flops())


def _result(
    name: str, case: Case, network: Network, steps: list[Step], others: list[Step] | None, matmul_flops: float
) -> dict[str, Any]:
    seconds = [step.seconds for step in steps]
    images = case.batch_size / median(seconds)
    ratios = [ours.seconds / its.seconds for ours, its in zip(steps, others or [], strict=False)]
    return {
        "name": name,
        "parameters": network.parameters,
        "tokens_per_second": images * case.config.schedule.length,
        "images_per_second": images,
        "peak_bytes": steps[-1].peak_bytes,
        "seconds": seconds,
        "flop": network.flop,
        "utilisation": network.flop / median(seconds) / matmul_flops,
        "ratio": median(ratios) if ratios else None,
        "loss": steps[-1].loss,
    }


# --- the process of a case ---


class Worker:
    """A generator that trains on random tokens."""

    def __init__(self, case: Case) -> None:
        self.case, config = case, case.config
        self.generator = Generator(config)
        initialise(self.generator, SEED)
        self.generator.train().activation_checkpointing = case.activation_checkpointing
        self.losses = GeneratorLoss(self.generator)
        run = GeneratorTraining(data="none", out="no-run", tokenizer="none", batch_size=case.batch_size)
        self.optimizer = build_optimizer(self.generator, run, decays)
        self.grad_clip = run.grad_clip
        self.autocast = autocast(case.dtype, torch.device("cpu"))
        B, schedule = case.batch_size, config.schedule
        rng = torch.Generator().manual_seed(SEED)
        self.labels_B = torch.randint(config.num_classes + 1, (B,), generator=rng)
        self.inputs_BlZ = torch.randn(B, schedule.length - schedule.areas[0], config.latent_channels, generator=rng)
        self.tokens_BL = torch.randint(config.vocab_size, (B, schedule.length), generator=rng)
        self.noise_BU = torch.rand(B, self.generator.noise_size, generator=rng)

    def step(self) -> Step:
        """Forward, backward, clipping and update, as the training loop does it."""
        start = time.perf_counter()
        with self.autocast():
            if self.case.full_logits:
                logits_BLV = self.generator(self.labels_B, self.inputs_BlZ, self.noise_BU)
                loss = F.cross_entropy(logits_BLV.flatten(0, 1), self.tokens_BL.flatten())
                del logits_BLV
            else:
                loss = self.losses(self.labels_B, self.inputs_BlZ, self.tokens_BL, self.noise_BU)[0].mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.generator.parameters(), self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(time.perf_counter() - start, peak_bytes(), float(loss.detach()))


_workers: list[Worker] = []  # the one of this process


def _process(case: Case) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start, (case,))


def _start(case: Case) -> None:
    _workers.append(Worker(case))


def _one_step() -> Step:
    return _workers[0].step()


def _step(name: str, process: ProcessPoolExecutor) -> Step:
    try:
        return process.submit(_one_step).result()
    except BrokenProcessPool as error:
        raise ValueError(f"case {name!r}: its process ended; see above, or free memory") from error
