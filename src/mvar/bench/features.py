"""How many images per second the networks of evaluation process, and what share of the best matrix product that is.

Inception has random weights here, which take as long as the published ones.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mvar.bench.parts import Ledger, WorkCounter
from mvar.bench.results import bar_chart, columns, measured_on, write_results
from mvar.bench.roofline import Peaks, quickest
from mvar.features.effnet import EffNetLite0
from mvar.features.extractors import DTYPES, LARGE, SMALL, EffNetExtractor
from mvar.features.inception import SIDE, InceptionV3, published_shapes
from mvar.machine import check_memory
from mvar.progress import track
from mvar.settings import Count, check

SEED = 0
NUMBER_BYTES = 4
PIXELS = {SMALL: 32, LARGE: 256, SIDE: 256}  # sides of the images, by the side that a network sees


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One network in one dtype."""

    network: str  # as in a report of `mvar evaluate`
    dtype: str
    pixels: int  # side of the images
    sees: int  # side that they are resized to
    images_per_second: float  # resizing included; by the median of all rounds
    seconds: list[float]  # each round's batch
    flop: int  # matrix products and convolutions per image, depthwise ones left out
    utilisation: float  # share of the best square product in this dtype between the rounds


class _Case(NamedTuple):
    """A network at one size."""

    network: str
    sees: int
    flop: int
    extract: Mapping[str, Callable[[Tensor], Any]]  # by dtype


def bench(batch_size: int, rounds: int) -> tuple[list[Speed], dict[str, float]]:
    """Every network in turn, after a round to warm up: in float32, and in bfloat16 if the processor has fast products.

    Returns:
        Their speeds, and for each dtype the FLOP/s of the best square product.

    Raises:
        ValueError: numbers below 1, or EfficientNet's package is missing.
    """
    check("batch_size", batch_size, Count)
    check("rounds", rounds, Count)
    seen = NUMBER_BYTES * 3 * batch_size * max(PIXELS) ** 2
    check_memory(seen, f"batch_size = {batch_size}: the images as networks see them", "give fewer")
    dtypes: list[str] = list(dict.fromkeys(["float32", quickest()]))
    cases = [_effnet(SMALL, dtypes), _effnet(LARGE, dtypes), _inception(dtypes)]
    rng = torch.Generator().manual_seed(SEED)
    images = {}
    for side in {*PIXELS.values()}:
        pixels_BHW3 = torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8, generator=rng)
        images[side] = pixels_BHW3.permute(0, 3, 1, 2)
    peaks = {dtype: Peaks(DTYPES[dtype]) for dtype in dtypes}
    runs = [(case, dtype, list[float]()) for case in cases for dtype in dtypes]
    for turn in track(range(rounds + 1), rounds + 1, "rounds"):
        for peak in peaks.values():
            peak.measure()
        for case, dtype, seconds in runs:
            start = time.perf_counter()
            case.extract[dtype](images[PIXELS[case.sees]])
            if turn > 0:
                seconds.append(time.perf_counter() - start)
    best = {dtype: peak.matmul_flops for dtype, peak in peaks.items()}
    return [
        Speed(
            network=case.network,
            dtype=dtype,
            pixels=PIXELS[case.sees],
            sees=case.sees,
            images_per_second=(rate := batch_size / median(seconds)),
            seconds=seconds,
            flop=case.flop,
            utilisation=rate * case.flop / best[dtype],
        )
        for case, dtype, seconds in runs
    ], best


def table(results: Sequence[Speed]) -> str:
    """The results as lines of text."""
    rows = [
        [r.network, r.dtype, f"{r.pixels} px", f"{r.sees} px", f"{r.images_per_second:.1f}", f"{r.utilisation:.0%}"]
        for r in results
    ]
    return columns(["", "dtype", "images", "seen as", "images/s", "of peak"], *rows)


def write(results: Sequence[Speed], best: dict[str, float], batch_size: int, folder: Path) -> None:
    """Write features.json and features.png."""
    report: dict[str, Any] = {"batch_size": batch_size, "matmul_flops": best}
    report |= {"results": [asdict(r) for r in results], "machine": measured_on()}
    names = [f"{r.network} at {r.sees} px, {r.dtype}" for r in results]
    panels = {
        "images per second": [r.images_per_second for r in results],
        "% of the best product's rate": [100 * r.utilisation for r in results],
    }
    write_results(report, folder, "features", lambda: bar_chart(names, panels))


def _effnet(side: int, dtypes: Sequence[str]) -> _Case:
    extract = {dtype: EffNetExtractor(None, dtype, side) for dtype in dtypes}
    return _Case(EffNetExtractor.network, side, _flop(EffNetLite0(), torch.zeros(1, 3, side, side)), extract)


def _inception(dtypes: Sequence[str]) -> _Case:
    rng = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, shape in published_shapes().items():
        if len(shape) > 1:
            tensors[name] = torch.randn(shape, generator=rng) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        else:
            tensors[name] = torch.zeros(shape) if name.endswith(("bias", "running_mean")) else torch.ones(shape)
    networks = {dtype: InceptionV3(tensors, dtype=DTYPES[dtype]) for dtype in dtypes}
    image_1 = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    extract = {dtype: torch.inference_mode()(network) for dtype, network in networks.items()}
    return _Case("inception-v3", SIDE, _flop(networks["float32"], image_1), extract)


@torch.no_grad()
def _flop(network: nn.Module, image_1: Tensor) -> int:
    with WorkCounter(Ledger()) as counter:
        network(image_1)
    return sum(work.flop for work in counter.work)
