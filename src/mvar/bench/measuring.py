"""What benchmarks measure with: cases that take turns, and the best that the machine can do meanwhile.

Source: Williams et al. 2009, "Roofline": a product takes max(FLOP / peak, weight bytes / bandwidth).
"""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from mvar.bench.parts import Work
from mvar.checkpoint.placement import Dtype, find_dtype
from mvar.progress import track

SEED = 0
SIDES = (256, 1024, 2048, 4096)  # of the square products
PATIENCE = 1.0  # seconds per product: bfloat16, where asked for, is a hundred times slower on processors without it
READ_BYTES = 2**30  # of the array that is read: larger than caches
HEADROOM = 4 * 2**30  # bytes that must be free for all of this

Name = TypeVar("Name", bound=Hashable)
Measured = TypeVar("Measured")


@dataclass
class Peaks:
    """The best figures so far; call `measure` repeatedly between the measurements to compare with them."""

    dtype: torch.dtype  # of the products
    matmul_flops: float = 0.0  # the best square product, FLOP/s
    bandwidth: float = 0.0  # the best read of a large array, bytes/s

    def __post_init__(self) -> None:
        self._squares = [torch.randn(side, side).to(self.dtype) for side in SIDES]
        self._array = torch.ones(READ_BYTES // 4)

    def measure(self) -> None:
        """One product of each size that does not take too long, and one read."""
        for square in self._squares:
            flop = 2 * len(square) ** 3
            if self.matmul_flops and flop / self.matmul_flops > PATIENCE:
                break
            start = time.perf_counter()
            square @ square
            self.matmul_flops = max(self.matmul_flops, flop / (time.perf_counter() - start))
        start = time.perf_counter()
        self._array.sum()
        self.bandwidth = max(self.bandwidth, READ_BYTES / (time.perf_counter() - start))

    def floor(self, work: Iterable[Work]) -> float:
        """Seconds that these products take at best; all else counts as free."""
        return sum(max(item.flop / self.matmul_flops, item.weight_bytes / self.bandwidth) for item in work)


def take_turns(
    cases: Mapping[Name, Callable[[], Measured]], rounds: int, warm_up: int = 1, peaks: Sequence[Peaks] = ()
) -> dict[Name, list[Measured]]:
    """What each case returns in each round after the first ones; each round also measures the machine's best."""
    taken: dict[Name, list[Measured]] = {name: [] for name in cases}
    for turn in track(range(warm_up + rounds), warm_up + rounds, "rounds"):
        for peak in peaks:
            peak.measure()
        for name, case in cases.items():
            measured = case()
            if turn >= warm_up:
                taken[name].append(measured)
    return taken


def quickest() -> Dtype:
    """The dtype in which this processor multiplies fastest: never one that it emulates."""
    return find_dtype(None, torch.device("cpu"))
