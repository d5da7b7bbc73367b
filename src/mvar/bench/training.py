"""What one training step of a generator takes: tokens a second and peak memory, against simpler ways and against VAR.

Every case runs in a process of its own. Where memory allows, all run at once and take turns, so that what else the
machine does meets them alike; else one after the other.
"""

import json
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import psutil
import torch

from mvar import __version__
from mvar.bench.training_worker import Settings, Step
from mvar.data.progress import track
from mvar.files import atomic_write, writable_folder, write_text
from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.generator.network import Generator

STATE_BYTES = 16  # of a parameter: itself, its gradient and Adam's two moments in float32
WARM_UP = 1  # steps; the first makes the optimizer's state
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
        loss: of the last step.
    """

    name: str
    parameters: int
    tokens_per_second: float
    images_per_second: float
    peak_bytes: int
    seconds: list[float]
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
    for name, value in (("batch_size", batch_size), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name} = {value}: must be at least 1")
    folder = None if out is None else _results_folder(out)
    cases = _cases(preset, batch_size, dtype)
    sizes = {name: _parameters(settings) for name, settings in cases.items()}
    together = 2 * STATE_BYTES * sum(sizes.values()) < psutil.virtual_memory().available
    groups = [list(cases)] if together else [[name] for name in cases]
    taken: dict[str, list[Step]] = {name: [] for name in cases}
    for group in groups:
        _refuse_too_large(sum(sizes[name] for name in group))
        with ExitStack() as stack:
            workers = {name: stack.enter_context(_Process(name, cases[name])) for name in group}
            for _ in track(range(WARM_UP + steps), WARM_UP + steps, ", ".join(group)):
                for name, worker in workers.items():
                    taken[name].append(worker.step())
    results = [_result(name, cases[name], sizes[name], taken[name]) for name in cases]
    if folder is not None:
        how = {"preset": preset, "batch_size": batch_size, "dtype": dtype, "steps": steps, "took_turns": together}
        where = {"mvar": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
        report = {**how, **where, "results": [asdict(result) for result in results]}
        write_text(folder / RESULTS, json.dumps(report, indent=2) + "\n")
        draw(results, folder / CHART)
    return results


def table(results: list[Result]) -> str:
    """The results as lines of text."""
    lines = [f"{'':<28}{'tokens/s':>10}{'images/s':>10}{'peak GB':>10}{'weights, gradients, Adam':>27}"]
    for r in results:
        speed = f"{r.tokens_per_second:>10,.0f}{r.images_per_second:>10.2f}"
        lines.append(f"{r.name:<28}{speed}{r.peak_bytes / 1e9:>10.2f}{r.state_bytes / 1e9:>27.2f}")
    return "\n".join(lines)


def draw(results: list[Result], path: Path) -> None:
    """A bar for each case: tokens a second, and peak memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 0.45 * len(results)), layout="constrained")
    names = [result.name for result in results][::-1]
    panels = {
        "tokens a second": [result.tokens_per_second for result in results][::-1],
        "peak memory, GB": [result.peak_bytes / 1e9 for result in results][::-1],
    }
    for axes, (title, values) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        bars = axes.barh(names, values, color="#2a6fbb")
        axes.bar_label(bars, fmt="{:,.3g}" if max(values) < 1000 else "{:,.0f}", padding=3)
        axes.set_title(title)
        axes.margins(x=0.15)
    atomic_write(path, lambda partial: figure.savefig(partial, dpi=120))


def _cases(preset: str, batch_size: int, dtype: str) -> dict[str, Settings]:
    """The library's way first, then the same with less care for memory, then the VAR baseline."""
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

    found = {
        f"{preset}, checkpointing": case(model, True),
        preset: case(model, False),
        f"{preset}, full logits": case(model, False, full_logits=True),
    }
    if baseline != model:
        found["VAR, checkpointing"] = case(baseline, True)
    return found


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
    with torch.device("meta"):
        generator = Generator(GeneratorConfig(**settings.model))  # type: ignore[arg-type]
    return sum(p.numel() for p in generator.parameters())


def _refuse_too_large(parameters: int) -> None:
    needed, free = STATE_BYTES * parameters, psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"preset: weights, gradients and Adam alone take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "give a smaller preset"
        )


def _results_folder(out: str) -> Path:
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError("out: the chart needs matplotlib: pip install 'mvar-torch[recipes]'") from error
    return writable_folder(out, "out")


def _result(name: str, settings: Settings, parameters: int, taken: list[Step]) -> Result:
    seconds = [step.seconds for step in taken[WARM_UP:]]
    images = settings.batch_size / median(seconds)
    return Result(
        name=name,
        parameters=parameters,
        tokens_per_second=images * GeneratorConfig(**settings.model).schedule.length,  # type: ignore[arg-type]
        images_per_second=images,
        peak_bytes=taken[-1].peak_bytes,
        seconds=seconds,
        loss=taken[-1].loss,
    )
