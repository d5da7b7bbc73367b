"""What one training step of a generator takes: tokens per second, peak memory and the share of the machine's best
product rate, against simpler ways and against VAR.

Every case runs in a process of its own. As many as fit into memory run at once and take turns, so that other load on
the machine affects them alike; the machine's best is measured between their steps.

Shapes: B images, l tokens after the first scale, Z latent channels.
"""

import multiprocessing
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from mvar.bench.results import bar_chart, columns, measured_on, write_results
from mvar.bench.roofline import Peaks
from mvar.bench.training_worker import Settings, Step, serve
from mvar.files import writable_folder
from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.generator.network import Generator
from mvar.machine import check_memory, free_bytes
from mvar.progress import track
from mvar.settings import Count, Many, check
from mvar.training.task import STATE_BYTES

ACTIVATION_BYTES = 128  # per token, block and unit of width: what the backward pass needs, at most
PROCESS_BYTES = 2**29  # of a process that has imported torch
PASSES = 3  # forward and backward in units of the forward pass: a product's gradients are two products of its size
WARM_UP = 2  # steps: the first makes the optimizer's state, both touch memory that later ones find in place
BASELINE = "VAR"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A case's figures."""

    name: str
    parameters: int
    tokens_per_second: float  # by the median step, as the next
    images_per_second: float
    peak_bytes: int  # largest resident set of its process
    seconds: list[float]  # each step
    flop: int  # a step's model arithmetic, see `_count`
    utilisation: float  # flop over the median step's seconds, as a share of the machine's best square product
    ratio: float | None  # median over the steps of its seconds over VAR's; None where they did not take turns
    loss: float  # the last step's

    @property
    def state_bytes(self) -> int:
        """Parameters, gradients and Adam's moments in float32."""
        return STATE_BYTES * self.parameters


class Network(NamedTuple):
    """What is counted of a generator."""

    parameters: int
    flop: int


def bench(preset: str, batch_size: int, dtype: str, steps: int, out: str | None = None) -> list[Result]:
    """Measure every case of a preset.

    Args:
        preset: of the generator.
        batch_size: images per step.
        dtype: of the matrix products, "float32" or "bfloat16".
        steps: timed, for each case.
        out: folder for train.json and train.png.

    Raises:
        ValueError: an unknown preset, numbers below 1, too little free memory, or a case whose process ended.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset = {preset!r}: choose from {', '.join(PRESETS)}")
    check("batch_size", batch_size, Count)
    check("steps", steps, Many)
    folder = None if out is None else writable_folder(out, "out")
    cases = _cases(preset, batch_size, dtype)
    counted = {name: _count(s.config, batch_size) for name, s in cases.items() if name in (preset, BASELINE)}
    networks = {name: counted[name.partition(",")[0]] for name in cases}
    peaks = Peaks(getattr(torch, dtype))
    needed = {name: _needed(settings, networks[name].parameters) for name, settings in cases.items()}
    groups = _groups(needed)
    taken: dict[str, list[Step]] = {name: [] for name in cases}
    for group in groups:
        what = "preset, batch_size: weights, gradients, Adam and activations"
        check_memory(sum(needed[name] for name in group), what, "give a smaller preset or batch")
        with ExitStack() as stack:
            workers = {name: stack.enter_context(_Process(name, cases[name])) for name in group}
            for _ in track(range(WARM_UP + steps), WARM_UP + steps, ", ".join(group)):
                peaks.measure()
                for name, worker in workers.items():
                    taken[name].append(worker.step())
    results = []
    for group in groups:
        for name in group:
            rival = name.replace(preset, BASELINE, 1)
            others = taken[rival] if rival in group else None
            results.append(_result(name, cases[name], networks[name], taken[name], others, peaks.matmul_flops))
    if folder is not None:
        how = {"preset": preset, "batch_size": batch_size, "dtype": dtype, "steps": steps, "took_turns": groups}
        where = {"matmul_flops": peaks.matmul_flops, "machine": measured_on()}
        panels = {
            "tokens per second": [r.tokens_per_second for r in results],
            "% of the best product's rate": [100 * r.utilisation for r in results],
            "peak memory, GB": [r.peak_bytes / 1e9 for r in results],
        }
        report = {**how, **where, "results": [asdict(r) for r in results]}
        write_results(report, folder, "train", lambda: bar_chart([r.name for r in results], panels))
    return results


def table(results: list[Result]) -> str:
    """The results as lines of text."""
    rows = [["", "s", "tokens/s", "images/s", "of peak", "x VAR", "peak GB", "weights, gradients, Adam: GB"]]
    for r in results:
        speed = [f"{median(r.seconds):.2f}", f"{r.tokens_per_second:,.0f}", f"{r.images_per_second:.2f}"]
        relative = [f"{r.utilisation:.0%}", f"{r.ratio:.2f}" if r.ratio else ""]
        rows.append([r.name, *speed, *relative, f"{r.peak_bytes / 1e9:.2f}", f"{r.state_bytes / 1e9:.2f}"])
    return columns(*rows)


def _cases(preset: str, batch_size: int, dtype: str) -> dict[str, Settings]:
    """The default and the VAR baseline, both again with checkpointing, then the default with full logits."""
    ours = Settings(config=PRESETS[preset], batch_size=batch_size, dtype=dtype)
    baseline = replace(ours.config, attention="global", mamba=False)
    found = {preset: ours} | ({BASELINE: replace(ours, config=baseline)} if baseline != ours.config else {})
    found |= {f"{name}, checkpointing": replace(s, activation_checkpointing=True) for name, s in found.items()}
    return found | {f"{preset}, full logits": replace(ours, full_logits=True)}


def _needed(settings: Settings, parameters: int) -> int:
    """About the memory that a case's process takes."""
    config, tokens = settings.config, settings.batch_size * settings.config.schedule.length
    return PROCESS_BYTES + STATE_BYTES * parameters + ACTIVATION_BYTES * tokens * config.depth * config.width


def _groups(needed: dict[str, int]) -> list[list[str]]:
    """Consecutive cases that fit into memory together."""
    free = free_bytes()
    groups: list[list[str]] = []
    for name in needed:
        if groups and sum(needed[other] for other in groups[-1]) + needed[name] < free:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


class _Process:
    """A worker as its parent sees it; a context manager that ends it."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        context = multiprocessing.get_context("forkserver")  # which imports torch once for all cases
        context.set_forkserver_preload([serve.__module__])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(settings, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def step(self) -> Step:
        """Have it make one step."""
        try:
            self._connection.send("step")
            return self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            ended = f"its process ended with code {self._process.exitcode}"
            raise ValueError(f"case {self.name!r}: {ended}; see above, or free memory") from error


def _count(config: GeneratorConfig, B: int) -> Network:
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
    name: str, settings: Settings, network: Network, steps: list[Step], others: list[Step] | None, matmul_flops: float
) -> Result:
    seconds = [step.seconds for step in steps[WARM_UP:]]
    images = settings.batch_size / median(seconds)
    ratios = [a.seconds / b.seconds for a, b in zip(steps[WARM_UP:], (others or [])[WARM_UP:], strict=False)]
    return Result(
        name=name,
        parameters=network.parameters,
        tokens_per_second=images * settings.config.schedule.length,
        images_per_second=images,
        peak_bytes=steps[-1].peak_bytes,
        seconds=seconds,
        flop=network.flop,
        utilisation=network.flop / median(seconds) / matmul_flops,
        ratio=median(ratios) if ratios else None,
        loss=steps[-1].loss,
    )
