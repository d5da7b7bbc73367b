"""The report of the benchmark of sampling as text and as a chart."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mvar.bench.parts import PARTS
from mvar.bench.results import columns
from mvar.charts import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]  # see `mvar.bench.sampling.bench`


def table(report: Report) -> str:
    """The report as lines of text."""
    blocks = [
        f"{report['preset']}, {report['dtype']}, {report['batch']} at once, guidance {report['guidance']:g}, "
        f"{report['threads']} threads: {report['seconds']:.3f} s; floor {report['floor_seconds']:.3f} s "
        f"({100 * report['fraction']:.0f} %); first image after {report['first_image_seconds']:.1f} s; "
        f"peak memory {report['peak_bytes'] / 1e9:.2f} GB, of it weights {report['weight_bytes'] / 1e9:.2f} GB\n"
        f"machine at best: {report['matmul_flops'] / 1e9:,.0f} GFLOP/s, {report['bandwidth'] / 1e9:.1f} GB/s",
        _seconds("part", [{"part": name, **split} for name, split in report["parts"].items()]),
        _seconds("scale", report["scales"]),
    ]
    if len(report["batches"]) > 1:
        blocks.append(_seconds("batch", report["batches"], "images_per_second"))
    if report["against"]:
        blocks.append(_seconds("name", report["against"], "ratio"))
    return "\n\n".join(blocks)


def _seconds(name: str, rows: list[Report], *more: str) -> str:
    heads = {"batch": "at once", "name": "against", "images_per_second": "images/s", "ratio": "ours / its"}
    head = [heads.get(key, key) for key in (name, "seconds", "floor", *more)]
    lines = [
        [str(row[name]), f"{row['seconds']:.3f}", f"{row['floor_seconds']:.3f}", *(f"{row[key]:.2f}" for key in more)]
        for row in rows
    ]
    return columns(head, *lines)


def plot(report: Report) -> "Figure":
    """A bar for each scale and the decoder, in parts, with its floor; and images per second over the batch size."""
    batches = report["batches"]
    several = len(batches) > 1
    figure = new_figure(13 if several else 9, 4)
    axes = figure.subplots(1, 2 if several else 1, squeeze=False, width_ratios=(2, 1) if several else None)[0]
    _plot_scales(axes[0], report)
    if several:
        sizes = [row["batch"] for row in batches]
        axes[1].plot(sizes, [row["images_per_second"] for row in batches], "o-", label="measured")
        floor = [row["batch"] / row["floor_seconds"] for row in batches]
        axes[1].plot(sizes, floor, "--", color="black", label="floor")
        axes[1].set(xscale="log", xlabel="images at once", ylabel="images per second", ylim=(0, None))
        axes[1].set_xticks(sizes, list(map(str, sizes)), minor=False)
        axes[1].set_xticks([], minor=True)
        axes[1].legend(frameon=False)
    return figure


def _plot_scales(axes: "Axes", report: Report) -> None:
    decoder = report["parts"]["decoder"]
    last = {"scale": "decoder", "parts": {"decoder": decoder["seconds"]}, "floor_seconds": decoder["floor_seconds"]}
    rows = [*report["scales"], last]
    names, below = [row["scale"] for row in rows], [0.0] * len(rows)
    for part in PARTS:
        seconds = [row["parts"].get(part, 0.0) for row in rows]
        if any(seconds):
            axes.bar(names, seconds, 0.55, bottom=below, label=part)
            below = [a + b for a, b in zip(below, seconds, strict=True)]
    axes.plot(names, [row["floor_seconds"] for row in rows], "_", color="black", markersize=22, label="floor")
    axes.set_ylabel("seconds")
    axes.margins(y=0.08)
    title = f"{report['preset']}, {report['dtype']}: {report['seconds']:.2f} s, floor {report['floor_seconds']:.2f} s"
    axes.set_title(title)
    axes.legend(frameon=False)
