"""Results of the benchmark of sampling: what they hold, as text, as JSON and as a chart."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvar.bench import results
from mvar.bench.parts import PARTS
from mvar.bench.results import columns, write_results
from mvar.charts import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Split:
    """Measured seconds, and the floor: what matrix products and convolutions take at the machine's best."""

    seconds: float
    floor_seconds: float


@dataclass(frozen=True, kw_only=True)
class Batch(Split):
    """One batch size: the median of all rounds."""

    batch: int
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Rival(Split):
    """Another case at the first batch size."""

    name: str
    ratio: float  # median over the rounds of this case's seconds over its rival's


@dataclass(frozen=True, kw_only=True)
class Result(Split):
    """One model at its first batch size, latent and decoder; the median of all rounds."""

    preset: str
    dtype: str
    batch: int
    guidance: float
    threads: int
    rounds: list[float]  # seconds of each
    fraction: float  # floor_seconds / seconds
    first_image_seconds: float  # from building the model to its first batch
    peak_bytes: int  # largest resident set of the process up to then
    weight_bytes: int
    parts: dict[str, Split]  # they add up to the round of the median
    scales: list[dict[str, Any]]  # likewise, coarse to fine, with each part's seconds; without the decoder
    matmul_flops: float  # the machine's best square product in this dtype, FLOP/s
    bandwidth: float  # the machine's best read of a large array, bytes/s
    batches: list[Batch]
    against: list[Rival]
    machine: dict[str, Any]


def table(result: Result) -> str:
    """The result as lines of text."""

    def times(name: object, seconds: float, floor: float, *more: str) -> list[str]:
        return [str(name), f"{seconds:.3f}", f"{floor:.3f}", *more]

    blocks = [
        f"{result.preset}, {result.dtype}, {result.batch} at once, guidance {result.guidance:g}, "
        f"{result.threads} threads: {result.seconds:.3f} s; floor {result.floor_seconds:.3f} s "
        f"({100 * result.fraction:.0f} %); first image after {result.first_image_seconds:.1f} s; "
        f"peak memory {result.peak_bytes / 1e9:.2f} GB, of it weights {result.weight_bytes / 1e9:.2f} GB\n"
        f"machine at best: {result.matmul_flops / 1e9:,.0f} GFLOP/s, {result.bandwidth / 1e9:.1f} GB/s"
    ]
    head = ["seconds", "floor"]
    blocks.append(columns(["part", *head], *(times(n, s.seconds, s.floor_seconds) for n, s in result.parts.items())))
    rows = [times(row["scale"], row["seconds"], row["floor_seconds"]) for row in result.scales]
    blocks.append(columns(["scale", *head], *rows))
    if len(result.batches) > 1:
        rows = [times(b.batch, b.seconds, b.floor_seconds, f"{b.images_per_second:.2f}") for b in result.batches]
        blocks.append(columns(["at once", *head, "images/s"], *rows))
    if result.against:
        rows = [times(r.name, r.seconds, r.floor_seconds, f"{r.ratio:.2f}") for r in result.against]
        blocks.append(columns(["against", *head, "ours / its"], *rows))
    return "\n\n".join(blocks)


def write(result: Result, folder: Path) -> None:
    """Write sample.json and sample.png."""
    write_results(asdict(result), folder, "sample", lambda: _chart(result))


def as_json(result: Result) -> str:
    """The result as JSON."""
    return results.as_json(asdict(result))


def _chart(result: Result) -> "Figure":
    """A bar for each scale and the decoder, in parts, with its floor; and images per second over the batch size."""
    several = len(result.batches) > 1
    figure = new_figure(13 if several else 9, 4)
    axes = figure.subplots(1, 2 if several else 1, squeeze=False, width_ratios=(2, 1) if several else None)[0]
    _draw_scales(axes[0], result)
    if several:
        sizes = [batch.batch for batch in result.batches]
        axes[1].plot(sizes, [batch.images_per_second for batch in result.batches], "o-", label="measured")
        floor = [batch.batch / batch.floor_seconds for batch in result.batches]
        axes[1].plot(sizes, floor, "--", color="black", label="floor")
        axes[1].set(xscale="log", xlabel="images at once", ylabel="images per second", ylim=(0, None))
        axes[1].set_xticks(sizes, list(map(str, sizes)), minor=False)
        axes[1].set_xticks([], minor=True)
        axes[1].legend(frameon=False)
    return figure


def _draw_scales(axes: Any, result: Result) -> None:
    decoder = result.parts["decoder"]
    last = {"scale": "decoder", "parts": {"decoder": decoder.seconds}, "floor_seconds": decoder.floor_seconds}
    rows = [*result.scales, last]
    names, below = [row["scale"] for row in rows], [0.0] * len(rows)
    for part in PARTS:
        seconds = [row["parts"].get(part, 0.0) for row in rows]
        if any(seconds):
            axes.bar(names, seconds, 0.55, bottom=below, label=part)
            below = [a + b for a, b in zip(below, seconds, strict=True)]
    axes.plot(names, [row["floor_seconds"] for row in rows], "_", color="black", markersize=22, label="floor")
    axes.set_ylabel("seconds")
    axes.margins(y=0.08)
    axes.set_title(f"{result.preset}, {result.dtype}: {result.seconds:.2f} s, floor {result.floor_seconds:.2f} s")
    axes.legend(frameon=False)
