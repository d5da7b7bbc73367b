"""What one training step of a generator takes: tokens a second, peak memory and the share of the machine's best product
rate that is put to use, against simpler ways and against VAR.

Every case runs in a process of its own. As many as fit into memory run at once and take turns, so that what else the
machine does meets them alike; the machine's best is measured between their steps.

Shapes: B images, L tokens, l those after the first scale, Z latent channels.
"""

import json
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from mvar import __version__
from mvar.bench.roofline import Peaks
from mvar.bench.training_worker import Settings, Step
from mvar.files import atomic_write, writable_folder, write_text
from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.generator.network import Generator
from mvar.machine import check_memory, free_bytes, machine
from mvar.progress import track
from mvar.settings import Count, Many, check
from mvar.training.task import STATE_BYTES

ACTIVATION_BYTES = 128  # of a token in a block, times the width: what the backward pass needs, at most
PROCESS_BYTES = 2**29  # of a process that has imported torch
PASSES = 3  # forward and backward in units of the forward pass: a product's gradients are two products of its size
WARM_UP = 2  # steps: the first makes the optimizer's state, both touch memory that later ones find in place
BASELINE = "VAR"
RESULTS, CHART = "train.json", "train.png"


@dataclass(frozen=True, kw_only=True)
class Result:
    """A case's figures.

    Attributes:
        name: of the case.
        parameters: of its generator.
        tokens_per_second, images_per_second: by the median step.
        peak_bytes: largest resident set of its process.
        seconds: of each step.
        flop: of a step's model arithmetic, see `_flop`.
        utilisation: flop over the median step's seconds, as a share of the machine's best square product.
        ratio: median over the steps of this case's seconds over those of VAR in the same way; None where they did not
            take turns.
        loss: of the last step.
    """

    name: str
    parameters: int
    tokens_per_second: float
    images_per_second: float
    peak_bytes: int
    seconds: list[float]
    flop: int
    utilisation: float
    ratio: float | None
    loss: float

    @property
    def state_bytes(self) -> int:
        """What parameters, gradients and Adam's moments take in float32."""
        return STATE_BYTES * self.parameters


def bench(preset: str, batch_size: int, dtype: str, steps: int, out: str | None = None) -> list[Result]:
    """Measure every case of a preset.

    Args:
        preset: of the generator.
        batch_size: images of a step.
        dtype: of the matrix products, "float32" or "bfloat16".
        steps: timed, for each case.
        out: folder for train.json and train.png.

    Raises:
        ValueError: an unknown preset, numbers below 1, too little free memory, or a case that ended.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset = {preset!r}: choose from {', '.join(PRESETS)}")
    check("batch_size", batch_size, Count)
    check("steps", steps, Many)
    folder = None if out is None else _results_folder(out)
    cases = _cases(preset, batch_size, dtype)
    sizes = {name: _parameters(settings) for name, settings in cases.items()}
    peaks = Peaks(getattr(torch, dtype))
    groups = _groups({name: _needed(settings, sizes[name]) for name, settings in cases.items()})
    taken: dict[str, list[Step]] = {name: [] for name in cases}
    for group in groups:
        _refuse_too_large(sum(_needed(cases[name], sizes[name]) for name in group))
        with ExitStack() as stack:
            workers = {name: stack.enter_context(_Process(name, cases[name])) for name in group}
            for _ in track(range(WARM_UP + steps), WARM_UP + steps, ", ".join(group)):
                peaks.measure()
                for name, worker in workers.items():
                    taken[name].append(worker.step())
    results = []
    for group in groups:
        seconds = {name: [step.seconds for step in taken[name][WARM_UP:]] for name in group}
        for name in group:
            rival = seconds.get(name.replace(preset, BASELINE, 1))
            results.append(_result(name, cases[name], sizes[name], taken[name], peaks.matmul_flops, rival))
    if folder is not None:
        how = {"preset": preset, "batch_size": batch_size, "dtype": dtype, "steps": steps, "took_turns": groups}
        where = {"matmul_flops": peaks.matmul_flops, "machine": {"mvar": __version__, **machine()}}
        report = {**how, **where, "results": [asdict(result) for result in results]}
        write_text(folder / RESULTS, json.dumps(report, indent=2) + "\n")
        draw(results, folder / CHART)
    return results


def table(results: list[Result]) -> str:
    """The results as lines of text."""
    columns = f"{'s':>8}{'tokens/s':>10}{'images/s':>10}{'of peak':>9}{'x VAR':>7}{'peak GB':>9}"
    lines = [f"{'':<28}{columns}{'weights, gradients, Adam':>26}"]
    for r in results:
        speed = f"{median(r.seconds):>8.2f}{r.tokens_per_second:>10,.0f}{r.images_per_second:>10.2f}"
        share = f"{100 * r.utilisation:>7.0f} %" + (f"{r.ratio:>7.2f}" if r.ratio else f"{'':>7}")
        lines.append(f"{r.name:<28}{speed}{share}{r.peak_bytes / 1e9:>9.2f}{r.state_bytes / 1e9:>26.2f}")
    return "\n".join(lines)


def draw(results: list[Result], path: Path) -> None:
    """A bar for each case: tokens a second, utilisation, and peak memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 1.2 + 0.45 * len(results)), layout="constrained")
    names = [result.name for result in results][::-1]
    panels = {
        "tokens a second": [result.tokens_per_second for result in results][::-1],
        "% of the best product's rate": [100 * result.utilisation for result in results][::-1],
        "peak memory, GB": [result.peak_bytes / 1e9 for result in results][::-1],
    }
    for axes, (title, values) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        bars = axes.barh(names, values, color="#2a6fbb")
        axes.bar_label(bars, fmt="{:,.3g}" if max(values) < 1000 else "{:,.0f}", padding=3)
        axes.set_title(title)
        axes.margins(x=0.15)
    atomic_write(path, lambda partial: figure.savefig(partial, dpi=120))


def _cases(preset: str, batch_size: int, dtype: str) -> dict[str, Settings]:
    """The library's way and the VAR baseline, both again with checkpointing, then ours with less care for memory."""
    model = PRESETS[preset]
    baseline = replace(model, attention="global", mamba=False)

    def case(config: GeneratorConfig, checkpointing: bool, full_logits: bool = False) -> Settings:
        return Settings(
            model=asdict(config),
            batch_size=batch_size,
            dtype=dtype,
            activation_checkpointing=checkpointing,
            full_logits=full_logits,
        )

    names = {preset: model} | ({BASELINE: baseline} if baseline != model else {})
    found = {name: case(config, False) for name, config in names.items()}
    found |= {f"{name}, checkpointing": case(config, True) for name, config in names.items()}
    return found | {f"{preset}, full logits": case(model, False, full_logits=True)}


def _needed(settings: Settings, parameters: int) -> int:
    """About the memory that a case's process takes."""
    config = GeneratorConfig(**settings.model)  # type: ignore[arg-type]
    tokens = settings.batch_size * config.schedule.length
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
        command = [sys.executable, "-m", "mvar.bench.training_worker", json.dumps(asdict(settings))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "_Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def step(self) -> Step:
        """Have it make one step."""
        assert self._process.stdin is not None  # for type checkers: it is a pipe
        with suppress(BrokenPipeError):  # it ended; so says the missing answer
            print(file=self._process.stdin, flush=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise ValueError(f"case {self.name!r}: its process ended with code {code}; see above, or free memory")
        return Step(**json.loads(line))


def _parameters(settings: Settings) -> int:
    return sum(p.numel() for p in _meta(settings).parameters())


def _flop(settings: Settings) -> int:
    """Model arithmetic of one step: three times the forward pass, nothing that is computed again.

    2 for a multiplication with its addition, in all products: with weights, of tokens with tokens in attention and in
    the scan's chunks, and of the short convolution; counted by running the network on torch's meta device.
    """
    return _counted(json.dumps(settings.model), settings.batch_size)


@cache  # seconds for each, and some cases are of the same network
def _counted(model: str, B: int) -> int:
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(**json.loads(model))).eval()
    schedule = generator.schedule
    with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
        inputs_BlZ = torch.empty(B, schedule.length - schedule.areas[0], generator.config.latent_channels)
        generator(torch.zeros(B, dtype=torch.long), inputs_BlZ)
    return PASSES * counter.get_total_flops()


def _meta(settings: Settings) -> Generator:
    with torch.device("meta"):
        return Generator(GeneratorConfig(**settings.model))  # type: ignore[arg-type]


def _refuse_too_large(needed: int) -> None:
    what = "preset, batch_size: weights, gradients, Adam and activations"
    check_memory(needed, what, "give a smaller preset or batch")


def _results_folder(out: str) -> Path:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError("out: the chart needs matplotlib: pip install 'mvar-torch[recipes]'") from error
    return writable_folder(out, "out")


def _result(
    name: str,
    settings: Settings,
    parameters: int,
    taken: list[Step],
    matmul_flops: float,
    rival: list[float] | None,
) -> Result:
    seconds = [step.seconds for step in taken[WARM_UP:]]
    images, flop = settings.batch_size / median(seconds), _flop(settings)
    return Result(
        name=name,
        parameters=parameters,
        tokens_per_second=images * GeneratorConfig(**settings.model).schedule.length,  # type: ignore[arg-type]
        images_per_second=images,
        peak_bytes=taken[-1].peak_bytes,
        seconds=seconds,
        flop=flop,
        utilisation=flop / median(seconds) / matmul_flops,
        ratio=None if rival is None else median(a / b for a, b in zip(seconds, rival, strict=True)),
        loss=taken[-1].loss,
    )
