"""How many images a second the networks of evaluation take in, and what share of the machine's best product that is.

Inception has random weights here, which take as long as the published ones.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mvar import __version__
from mvar.bench.parts import Ledger, WorkCounter
from mvar.bench.roofline import Peaks, quickest
from mvar.features.effnet import EffNetLite0
from mvar.features.extractors import DTYPES, LARGE, SMALL, EffNetExtractor
from mvar.features.inception import SIDE, InceptionV3, published_shapes
from mvar.files import atomic_write, write_text
from mvar.machine import check_memory, machine
from mvar.progress import track
from mvar.settings import Count, check

SEED = 0
RESULTS, CHART = "features.json", "features.png"
NUMBER_BYTES = 4
PIXELS = {SMALL: 32, LARGE: 256, SIDE: 256}  # of the images, by the side that a network sees


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of one network in one dtype.

    Attributes:
        network, dtype: as in a report of `mvar evaluate`.
        pixels: side of the images.
        sees: side that the network has them resized to.
        images_per_second: resizing included; by the median of all rounds.
        seconds: of each round's batch.
        flop: of one image's matrix products and convolutions, depthwise ones left out.
        utilisation: of the best square product in this dtype between the rounds.
    """

    network: str
    dtype: str
    pixels: int
    sees: int
    images_per_second: float
    seconds: list[float]
    flop: int
    utilisation: float


class _Case(NamedTuple):
    """A network at one size."""

    network: str
    sees: int
    flop: int
    extract: Mapping[str, Callable[[Tensor], Any]]  # by dtype


def bench(batch_size: int, rounds: int) -> tuple[list[Speed], dict[str, float]]:
    """Every network in turn, after a round to warm up: in float32, and in bfloat16 if the processor multiplies it fast.

    Returns:
        Their speeds, and for each dtype the FLOP/s of the best square product.

    Raises:
        ValueError: numbers below 1, or EfficientNet's package is missing.
    """
    check("batch_size", batch_size, Count)
    check("rounds", rounds, Count)
    seen = NUMBER_BYTES * 3 * batch_size * max(PIXELS) ** 2
    check_memory(seen, f"batch_size = {batch_size}: the images as networks see them", "give fewer")
    cases = [_effnet(SMALL), _effnet(LARGE), _inception()]
    random = torch.Generator().manual_seed(SEED)
    images = {
        side: torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8, generator=random).permute(
            0, 3, 1, 2
        )
        for side in {*PIXELS.values()}
    }
    dtypes: list[str] = list(dict.fromkeys(["float32", quickest()]))
    peaks = {dtype: Peaks(DTYPES[dtype]) for dtype in dtypes}
    taken: dict[tuple[int, str], list[float]] = {(i, dtype): [] for i in range(len(cases)) for dtype in dtypes}
    for turn in track(range(rounds + 1), rounds + 1, "rounds"):
        for peak in peaks.values():
            peak.measure()
        for (i, dtype), seconds in taken.items():
            start = time.perf_counter()
            cases[i].extract[dtype](images[PIXELS[cases[i].sees]])
            if turn > 0:
                seconds.append(time.perf_counter() - start)
    best = {dtype: peak.matmul_flops for dtype, peak in peaks.items()}
    return [_speed(cases[i], dtype, batch_size, seconds, best[dtype]) for (i, dtype), seconds in taken.items()], best


def table(results: Sequence[Speed]) -> str:
    """The results as lines of text."""
    lines = [f"{'':<14}{'dtype':>10}{'images':>9}{'seen as':>9}{'images/s':>10}{'of peak':>9}"]
    for r in results:
        sizes = f"{r.pixels} px".rjust(9) + f"{r.sees} px".rjust(9)
        lines.append(f"{r.network:<14}{r.dtype:>10}{sizes}{r.images_per_second:>10.1f}{100 * r.utilisation:>7.0f} %")
    return "\n".join(lines)


def write(results: Sequence[Speed], best: dict[str, float], batch_size: int, folder: Path) -> None:
    """Write features.json and features.png."""
    from matplotlib.figure import Figure

    report: dict[str, Any] = {"batch_size": batch_size, "matmul_flops": best}
    report |= {"results": [asdict(r) for r in results], "machine": {"mvar": __version__, **machine()}}
    write_text(folder / RESULTS, json.dumps(report, indent=2) + "\n")
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    places = range(len(results))
    axes.barh(places, [r.images_per_second for r in results])
    axes.set_yticks(places, [f"{r.network} at {r.sees} px, {r.dtype}" for r in results])
    axes.invert_yaxis()
    axes.set_xscale("log")
    for place, r in zip(places, results, strict=True):
        said = f" {r.images_per_second:,.0f} ({100 * r.utilisation:.0f} % of peak)"
        axes.text(r.images_per_second, place, said, va="center")
    rates = [r.images_per_second for r in results]
    axes.set_xlim(min(rates) / 3, 20 * max(rates))  # room for what is written
    axes.set_xlabel("images a second")
    atomic_write(folder / CHART, lambda partial: figure.savefig(partial, dpi=120))


def _effnet(side: int) -> _Case:
    extract = {dtype: EffNetExtractor(None, dtype, side) for dtype in DTYPES}
    return _Case(EffNetExtractor.network, side, _flop(EffNetLite0(), torch.zeros(1, 3, side, side)), extract)


def _inception() -> _Case:
    random = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, shape in published_shapes().items():
        fan_in = torch.Size(shape[1:]).numel()  # 1 for what a normalisation has
        plain = torch.zeros(shape) if name.endswith(("bias", "running_mean")) else torch.ones(shape)
        tensors[name] = torch.randn(shape, generator=random) * (2 / fan_in) ** 0.5 if len(shape) > 1 else plain
    networks = {dtype: InceptionV3(tensors, dtype=torch_dtype) for dtype, torch_dtype in DTYPES.items()}
    image_1 = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    extract = {dtype: torch.inference_mode()(network) for dtype, network in networks.items()}
    return _Case("inception-v3", SIDE, _flop(networks["float32"], image_1), extract)


@torch.no_grad()
def _flop(network: nn.Module, image_1: Tensor) -> int:
    with WorkCounter(Ledger()) as counter:
        network(image_1)
    return sum(work.flop for work in counter.work)


def _speed(case: _Case, dtype: str, batch_size: int, seconds: list[float], best: float) -> Speed:
    rate = batch_size / median(seconds)
    return Speed(
        network=case.network,
        dtype=dtype,
        pixels=PIXELS[case.sees],
        sees=case.sees,
        images_per_second=rate,
        seconds=seconds,
        flop=case.flop,
        utilisation=rate * case.flop / best,
    )
