"""Everything that must be true and fast on a GPU, in about eight minutes: `make gpu`, or from a source tree without an
installation

    PYTHONPATH=src python -m benchmarks.gpu --out out/gpu

Prints a line for each section and goes on when one fails; writes
report.json after each, and report.png at the end. Exit status: 0 if all is well, 1 if a section failed, 2 without a
GPU. `--quick --device cpu` runs the same code at toy size.
"""

import argparse
import json
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

try:
    from benchmarks import checks
    from benchmarks.speed import PAIRS, TRAINED, Speed
except ModuleNotFoundError as error:
    print(f"benchmarks.gpu: the package {error.name} is missing; install it, or put it on PYTHONPATH", file=sys.stderr)
    sys.exit(2)
from mvar import __version__
from mvar.charts import BLUE, GREY, ORANGE, can_plot, new_figure, save, style_axes
from mvar.checkpoint.placement import find_device
from mvar.files import write_text
from mvar.machine import processor
from mvar.ops.dispatch import describe

MINUTES = 8.0
ROOT = Path(__file__).parents[1]
FAILED = "FAILED"


class Report:
    """The sections so far."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.start, self.minutes = folder, time.monotonic(), minutes
        self.sections: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds that remain."""
        return self.start + 60 * self.minutes - time.monotonic()

    def section(self, name: str, work: Callable[[], Any]) -> None:
        """Run and record one section; a failure is recorded and the next one goes on."""
        began = time.monotonic()
        if self.left() <= 0:
            found: Any = {"left out": "no time"}
        else:
            try:
                found = work()
            except Exception as error:  # whatever a driver or compiler may raise
                frames = traceback.extract_tb(error.__traceback__)
                ours = [frame for frame in frames[1:] if Path(frame.filename).is_relative_to(ROOT)]
                where = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in ours[-3:])
                found = f"{FAILED} {type(error).__name__}: {str(error)[:2000]} ({where})"
        self.sections[name] = {"found": found, "seconds": round(time.monotonic() - began, 2)}
        print(f"[{time.monotonic() - self.start:6.1f} s] {name}: {json.dumps(found, default=str)[:1500]}", flush=True)
        write_text(self.folder / "report.json", json.dumps(self.sections, indent=1, default=str) + "\n")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def failed(self) -> list[str]:
        """Names of the sections that failed."""
        return [name for name, s in self.sections.items() if str(s["found"]).startswith(FAILED)]


def run(device: torch.device, folder: Path, quick: bool, minutes: float) -> Report:
    """All sections: what is right first, then what is fast."""
    report = Report(folder, minutes)
    speed = Speed(device, quick, report.left)
    report.section("machine", lambda: _machine(device))
    report.section("peaks", speed.measure_peaks)
    report.section("first image", speed.first_image)
    right: dict[str, Callable[[], Any]] = {
        "kernels": partial(checks.kernels, device),
        "parity": partial(checks.parity, device),
        "tokens as on the CPU": partial(checks.tokens_as_on_the_cpu, device),
        "invariants": partial(checks.invariants, device),
        "recordings": partial(checks.recordings, device),
        "kernel counts": partial(checks.kernel_counts, device, speed.model, "tiny32" if quick else "d16"),
        "out of memory": partial(checks.out_of_memory, device),
        "trainings": partial(checks.trainings, device, ("fsdp",) if quick else ("ddp", "fsdp")),
    }
    for name, check in right.items():
        report.section(name, check)
    first, *others = (("tiny32", "tiny32"),) if quick else PAIRS
    report.section(f"sampling, {first[0]} and {first[1]}", partial(speed.sampling, first))
    for preset, batch in (("tiny32", 2),) if quick else TRAINED:
        report.section(f"training, {preset}, batch {batch}", partial(speed.training, preset, batch))
    if not quick:
        report.section("compiled training", partial(checks.compiled, device))
        report.section("training, d16, batch 64, compiled", partial(speed.training, "d16", 64, compiled=True))
    for pair in others:
        report.section(f"sampling, {pair[0]} and {pair[1]}", partial(speed.sampling, pair))
        speed.model.cache_clear()
    if can_plot("report.png"):
        save(_figure(report.sections), folder / "report.png")
    return report


def _machine(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    try:
        import triton

        version = triton.__version__
    except ModuleNotFoundError:
        version = None
    return {
        "device": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version,
        "mvar": __version__,
        "cores": os.cpu_count(),
        "runs": describe(device, torch.bfloat16),
    }


def _figure(sections: Mapping[str, Any]) -> Any:
    """Seconds of a batch, recorded and not, with their floors; and training."""
    drawn: dict[str, Any] = {}
    trained: dict[str, Any] = {}
    for name, section in sections.items():
        found = section["found"]
        if not isinstance(found, dict):
            continue
        if name.startswith("sampling"):
            for size, row in found.items():
                if isinstance(row, dict):
                    drawn |= {f"{preset}, {size}": row[preset] for preset in row if preset != "ratio"}
        elif "images/s" in found:
            trained[name.removeprefix("training, ")] = found
    rows = list(drawn.items())
    figure = new_figure(9, 2 + 0.22 * len(rows) + 0.4 * len(trained))
    upper, lower = figure.subplots(2, 1, height_ratios=[max(len(rows), 1), max(len(trained), 1) + 1])
    for i, (_, row) in enumerate(rows):
        upper.barh(i, row["not recorded"], color=GREY, label="launched by Python" if i == 0 else None)
        upper.barh(i, row["recorded"], color=BLUE, height=0.5, label="recorded" if i == 0 else None)
        upper.plot([row["floor"]] * 2, [i - 0.4, i + 0.4], color=ORANGE, label="floor" if i == 0 else None)
    upper.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    upper.set_xscale("log")
    upper.invert_yaxis()
    style_axes(upper, "Seconds of a batch, bfloat16", "")
    if rows:
        upper.legend(fontsize=7)
    bars = lower.barh(list(trained), [found["images/s"] for found in trained.values()], color=BLUE)
    shares = [f"{found['images/s']:.1f}, {found['share of peak']:.0%} of peak" for found in trained.values()]
    lower.bar_label(bars, shares, padding=3, fontsize=7)
    lower.margins(x=0.3)
    style_axes(lower, "Training, images a second", "")
    return figure


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder for report.json and report.png")
    parser.add_argument("--device", default="cuda", help="cuda by default")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that everything runs")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"{MINUTES:g} by default")
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(_refused("there is no CUDA device here; --quick --device cpu runs toy sizes on a CPU"))
    try:
        device = find_device(given.device)
    except ValueError as error:
        sys.exit(_refused(str(error)))
    warnings.simplefilter("default")
    report = run(device, given.out, given.quick, given.minutes)
    print(f"wrote {given.out / 'report.json'}; {len(report.failed)} of {len(report.sections)} sections failed")
    sys.exit(1 if report.failed else 0)


def _refused(line: str) -> int:
    print(f"benchmarks.gpu: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
