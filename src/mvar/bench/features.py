"""How many images per second the networks of evaluation process, and what share of the best matrix product that is.

Inception has random weights here, which take as long as the published ones.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mvar.bench.measuring import SEED, Peaks, quickest, take_turns
from mvar.bench.parts import Ledger, WorkCounter
from mvar.bench.results import bar_chart, columns
from mvar.features.effnet import EffNetLite0
from mvar.features.extractors import DTYPES, LARGE, SMALL, EffNetExtractor
from mvar.features.inception import SIDE, InceptionV3, published_shapes
from mvar.machine import check_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBER_BYTES = 4
PIXELS = {SMALL: 32, LARGE: 256, SIDE: 256}  # sides of the images, by the side that a network sees
INCEPTION = "inception-v3"


def bench(batch_size: int, rounds: int) -> dict[str, Any]:
    """Every network in turn: in float32, and in bfloat16 if the processor has fast products.

    Returns:
        The FLOP/s of the best square product by dtype, and for each network and dtype: side of the images, side that
        they are resized to, images per second (resizing included), seconds of each round, FLOP of an image's matrix
        products and convolutions (depthwise ones left out), and their rate as a share of the best product's.

    Raises:
        ValueError: too little free memory, or EfficientNet's package is missing.
    """
    seen = NUMBER_BYTES * 3 * batch_size * max(PIXELS) ** 2
    check_memory(seen, f"batch_size = {batch_size}: the images as networks see them", "give fewer")
    dtypes: list[str] = list(dict.fromkeys(["float32", quickest()]))
    inception = _inception_weights()
    image_1 = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    flop = {side: _flop(EffNetLite0(), torch.zeros(1, 3, side, side)) for side in (SMALL, LARGE)}
    flop[SIDE] = _flop(InceptionV3(inception), image_1)
    rng = torch.Generator().manual_seed(SEED)
    images = {
        side: torch.randint(0, 256, (batch_size, side, side, 3), dtype=torch.uint8, generator=rng).permute(0, 3, 1, 2)
        for side in {*PIXELS.values()}
    }
    cases = {}
    for sees, pixels in PIXELS.items():
        for dtype in dtypes:
            name = INCEPTION if sees == SIDE else EffNetExtractor.network
            network: Callable[[Tensor], Any] = (
                torch.inference_mode()(InceptionV3(inception, dtype=DTYPES[dtype]))
                if sees == SIDE
                else EffNetExtractor(None, dtype, sees)
            )
            cases[name, dtype, sees] = partial(_seconds, network, images[pixels])
    peaks = {dtype: Peaks(DTYPES[dtype]) for dtype in dtypes}
    results = []
    for (name, dtype, sees), seconds in take_turns(cases, rounds, peaks=[*peaks.values()]).items():
        rate = batch_size / median(seconds)
        results.append(
            {
                "network": name,
                "dtype": dtype,
                "pixels": PIXELS[sees],
                "sees": sees,
                "images_per_second": rate,
                "seconds": seconds,
                "flop": flop[sees],
                "utilisation": rate * flop[sees] / peaks[dtype].matmul_flops,
            }
        )
    best = {dtype: peak.matmul_flops for dtype, peak in peaks.items()}
    return {"batch_size": batch_size, "matmul_flops": best, "results": results}


def table(report: Mapping[str, Any]) -> str:
    """The report as lines of text."""
    rows = [
        [
            r["network"],
            r["dtype"],
            f"{r['pixels']} px",
            f"{r['sees']} px",
            f"{r['images_per_second']:.1f}",
            f"{r['utilisation']:.0%}",
        ]
        for r in report["results"]
    ]
    return columns(["", "dtype", "images", "seen as", "images/s", "of peak"], *rows)


def plot(report: Mapping[str, Any]) -> "Figure":
    """Bars of the speed, and of its share of the best."""
    results = report["results"]
    names = [f"{r['network']} at {r['sees']} px, {r['dtype']}" for r in results]
    panels = {
        "images per second": [r["images_per_second"] for r in results],
        "% of the best product's rate": [100 * r["utilisation"] for r in results],
    }
    return bar_chart(names, panels)


def _seconds(network: Callable[[Tensor], Any], images_B3HW: Tensor) -> float:
    start = time.perf_counter()
    network(images_B3HW)
    return time.perf_counter() - start


def _inception_weights() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(SEED)
    tensors = {}
    for name, shape in published_shapes().items():
        if len(shape) > 1:
            tensors[name] = torch.randn(shape, generator=rng) * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        else:
            tensors[name] = torch.zeros(shape) if name.endswith(("bias", "running_mean")) else torch.ones(shape)
    return tensors


@torch.no_grad()
def _flop(network: nn.Module, image_1: Tensor) -> int:
    with WorkCounter(Ledger()) as counter:
        network(image_1)
    return sum(work.flop for work in counter.work)
