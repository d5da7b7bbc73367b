"""Results of the benchmark of sampling: what they hold, as text, as JSON and as a picture."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mvar.bench.parts import PARTS
from mvar.files import atomic_write, write_text

RESULTS, CHART = "sample.json", "sample.png"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Measured seconds, and those of the floor."""

    seconds: float
    floor_seconds: float


@dataclass(frozen=True, kw_only=True)
class Batch(Split):
    """Of one batch size: the median of all rounds."""

    batch: int
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Rival(Split):
    """Of another case at the first batch size.

    Attributes:
        ratio: median over the rounds of this case's seconds over its rival's.
    """

    name: str
    ratio: float


@dataclass(frozen=True, kw_only=True)
class Result(Split):
    """Of one preset.

    Attributes:
        preset, dtype, batch, guidance: what was drawn, and how many images at once.
        threads: of torch.
        seconds: of one batch, latent and decoder; the median of all rounds.
        rounds: seconds of each.
        floor_seconds: what its matrix products and convolutions take at the machine's best; all else counts as free.
        fraction: floor_seconds / seconds.
        first_image_seconds: from building the model to its first batch.
        peak_bytes: largest resident set of the process up to then.
        weight_bytes: of the model.
        parts: by name; they add up to the round of the median.
        scales: likewise, coarse to fine, each with its parts' seconds; the decoder is not among them.
        matmul_flops: the machine's best square product in this dtype, FLOP/s.
        bandwidth: the machine's best read of a large array, bytes/s.
        batches: of every batch size asked for.
        against: of every other case.
        machine: versions and processor.
    """

    preset: str
    dtype: str
    batch: int
    guidance: float
    threads: int
    rounds: list[float]
    fraction: float
    first_image_seconds: float
    peak_bytes: int
    weight_bytes: int
    parts: dict[str, Split]
    scales: list[dict[str, Any]]
    matmul_flops: float
    bandwidth: float
    batches: list[Batch]
    against: list[Rival]
    machine: dict[str, Any]


def table(result: Result) -> str:
    """The result as lines of text."""
    lines = [
        f"{result.preset}, {result.dtype}, {result.batch} at once, guidance {result.guidance:g}, "
        f"{result.threads} threads: {result.seconds:.3f} s; floor {result.floor_seconds:.3f} s "
        f"({100 * result.fraction:.0f} %); first image after {result.first_image_seconds:.1f} s; "
        f"peak memory {result.peak_bytes / 1e9:.2f} GB, of it weights {result.weight_bytes / 1e9:.2f} GB",
        f"machine at best: {result.matmul_flops / 1e9:,.0f} GFLOP/s, {result.bandwidth / 1e9:.1f} GB/s",
        "",
        f"{'part':<12}{'seconds':>10}{'floor':>10}",
    ]
    lines += [f"{part:<12}{split.seconds:>10.3f}{split.floor_seconds:>10.3f}" for part, split in result.parts.items()]
    lines += ["", f"{'scale':<12}{'seconds':>10}{'floor':>10}"]
    lines += [f"{row['scale']:<12}{row['seconds']:>10.3f}{row['floor_seconds']:>10.3f}" for row in result.scales]
    if len(result.batches) > 1:
        lines += ["", f"{'at once':<12}{'seconds':>10}{'floor':>10}{'images/s':>10}"]
        lines += [
            f"{b.batch:<12}{b.seconds:>10.3f}{b.floor_seconds:>10.3f}{b.images_per_second:>10.2f}"
            for b in result.batches
        ]
    if result.against:
        lines += ["", f"{'against':<12}{'seconds':>10}{'floor':>10}{'ours / its':>12}"]
        lines += [f"{r.name:<12}{r.seconds:>10.3f}{r.floor_seconds:>10.3f}{r.ratio:>12.2f}" for r in result.against]
    return "\n".join(lines)


def write(result: Result, folder: Path) -> None:
    """Write sample.json and sample.png."""
    write_text(folder / RESULTS, as_json(result))
    draw(result, folder / CHART)


def as_json(result: Result) -> str:
    """The result as JSON."""
    return json.dumps(asdict(result), indent=2) + "\n"


def draw(result: Result, path: Path) -> None:
    """A bar for each scale and the decoder, in parts, its floor beside it; and images a second over the batch size."""
    from matplotlib.figure import Figure

    several = len(result.batches) > 1
    figure = Figure(figsize=(13 if several else 9, 4), layout="constrained")
    axes = figure.subplots(1, 2 if several else 1, squeeze=False, width_ratios=(2, 1) if several else None)[0]
    _draw_scales(axes[0], result)
    if several:
        sizes = [batch.batch for batch in result.batches]
        axes[1].plot(sizes, [batch.images_per_second for batch in result.batches], "o-", label="measured")
        floor = [batch.batch / batch.floor_seconds for batch in result.batches]
        axes[1].plot(sizes, floor, "--", color="black", label="floor")
        axes[1].set(xscale="log", xlabel="images at once", ylabel="images a second", ylim=(0, None))
        axes[1].set_xticks(sizes, list(map(str, sizes)), minor=False)
        axes[1].set_xticks([], minor=True)
        axes[1].legend(frameon=False)
    atomic_write(path, lambda partial_path: figure.savefig(partial_path, dpi=120))


def _draw_scales(axes: Any, result: Result) -> None:
    rows = [*result.scales, {"scale": "decoder", "parts": {"decoder": result.parts["decoder"].seconds}}]
    rows[-1]["floor_seconds"] = result.parts["decoder"].floor_seconds
    below = [0.0] * len(rows)
    places = list(range(len(rows)))
    for part in PARTS:
        seconds = [row["parts"].get(part, 0.0) for row in rows]
        if any(seconds):
            axes.bar(places, seconds, 0.55, bottom=below, label=part)
            below = [a + b for a, b in zip(below, seconds, strict=True)]
    axes.plot(places, [row["floor_seconds"] for row in rows], "_", color="black", markersize=22, label="floor")
    axes.set_xticks(places, [row["scale"] for row in rows])
    axes.set_ylabel("seconds")
    axes.margins(y=0.08)
    axes.set_title(f"{result.preset}, {result.dtype}: {result.seconds:.2f} s, floor {result.floor_seconds:.2f} s")
    axes.legend(frameon=False)
