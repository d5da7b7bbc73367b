"""Scaling: how the validation loss falls with parameters and compute, and where the curves of M-VAR and VAR meet.

    torchrun --nproc-per-node 2 -m mvar study run scaling

It is 78 minutes of training steps on one core of an AMD EPYC.

Table 2 (256 px, FID): at equal depth M-VAR is ahead of VAR everywhere, by 1.62 at depth 12 and 0.40 to 0.54 from 16 on.

| depth | 12 | 16 | 20 | 24 |
|---|---|---|---|---|
| VAR | 5.81 | 3.55 | 2.95 | 2.33 |
| M-VAR | 4.19 | 3.07 | 2.41 | 1.93 |
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mvar.generator.config import GeneratorConfig
from mvar.studies.comparing.plan import GLOBAL_ATTENTION, M_VAR, VAR, Scale, Study, Variants
from mvar.studies.comparing.records import LOSS

if TYPE_CHECKING:
    from mvar.studies.comparing.records import Row

AXES = {"parameters": "parameters", "step_flop": "training FLOP of an image"}
KINDS = (VAR, M_VAR)
DRAWS = 20_000  # of coefficients, for the interval of where two laws meet


class Law(NamedTuple):
    """loss = exp(intercept) * x ^ slope, fitted on logarithms.

    Attributes:
        half: from the slope to the ends of its 90 % interval.
        bend: slopes between neighbouring points; alike where the points do follow a power law.
        draws: of the coefficients, (DRAWS, 2).
    """

    slope: float
    intercept: float
    half: float
    bend: tuple[float, ...]
    draws: Any

    def loss(self, x: float) -> float:
        """What the law predicts."""
        return math.exp(self.intercept) * x**self.slope


def fit(x: Sequence[float], loss: Sequence[float]) -> Law | None:
    """The power law of a series, by least squares, without runs that diverged; None for fewer than three others."""
    import numpy as np
    from scipy import stats

    points = sorted((size, value) for size, value in zip(x, loss, strict=True) if math.isfinite(value))
    if len(points) < 3:
        return None
    logs, losses = np.log(points).T
    n = len(points)
    design = np.stack((logs, np.ones(n)), axis=1)
    found, *_ = np.linalg.lstsq(design, losses, rcond=None)
    variance = np.square(losses - design @ found).sum() / (n - 2)
    covariance = variance * np.linalg.inv(design.T @ design)
    noise = stats.multivariate_t(shape=covariance, df=n - 2, allow_singular=True, seed=0).rvs(DRAWS)
    half = stats.t.ppf(0.95, n - 2) * math.sqrt(covariance[0, 0])
    return Law(float(found[0]), float(found[1]), float(half), tuple(np.diff(losses) / np.diff(logs)), found + noise)


def meeting(first: Law, second: Law) -> tuple[float, float, float] | None:
    """Where two laws give the same loss, with its 90 % interval; None where the interval has no end.

    It has none if the slopes may well be equal: if more than 5 % of the draws have the other steeper slope.
    """
    import numpy as np

    draws = np.random.default_rng(0).permutation(second.draws)  # in the same order, both laws would err alike
    apart = first.draws[:, 0] - draws[:, 0]
    if np.mean(np.sign(apart) != np.sign(first.slope - second.slope)) > 0.05:
        return None
    places = (draws[:, 1] - first.draws[:, 1]) / apart
    low, high = np.quantile(places, (0.05, 0.95))
    place = (second.intercept - first.intercept) / (first.slope - second.slope)
    if max(abs(low), abs(high), abs(place)) > math.log(1e30):
        return None
    return math.exp(place), math.exp(low), math.exp(high)


def _variants(base: GeneratorConfig, scale: Scale) -> Variants:
    head = base.width // base.heads
    sizes = {
        f"d{depth}-w{width}": replace(base, depth=depth, width=width, heads=width // head, stochastic_depth=None)
        for depth, width in scale.sizes
    }
    return {
        f"{kind} {name}": replace(model, **changes)
        for name, model in sizes.items()
        for kind, changes in ((VAR, GLOBAL_ATTENTION), (M_VAR, {}))
    }


def _series(rows: "Sequence[Row]", times: Mapping[str, Any], kind: str, axis: str) -> tuple[list[float], list[float]]:
    """The sizes of a kind and their losses at equal steps."""
    own = [row for row in rows if row.variant.startswith(f"{kind} ")]
    return [getattr(times[row.variant], axis) for row in own], [row.measures[LOSS].mean for row in own]


def _conclude(rows: "Sequence[Row]", times: Mapping[str, Any]) -> list[str]:
    sentences = []
    for axis, label in AXES.items():
        series = {kind: _series(rows, times, kind, axis) for kind in KINDS}
        laws = {kind: law for kind in KINDS if (law := fit(*series[kind]))}
        if len(laws) < len(KINDS):
            return ["Too many runs diverged: no power law."]
        slopes = [
            f"{kind}'s loss follows a power law of the {label} with exponent {law.slope:.4f} (90 % interval "
            f"{law.slope - law.half:.4f} to {law.slope + law.half:.4f}; between neighbouring sizes "
            f"{', '.join(f'{slope:.3f}' for slope in law.bend)})"
            for kind, law in laws.items()
        ]
        found = meeting(laws[VAR], laws[M_VAR])
        where = "where the two meet cannot be said from these sizes"
        if found is not None:
            place, low, high = found
            where = f"the two meet at {place:.2g} (90 % interval {low:.2g} to {high:.2g})"
            sizes = [x for sizes, _ in series.values() for x in sizes]
            if not min(sizes) <= place <= max(sizes):
                where += f", outside the measured sizes ({min(sizes):.2g} to {max(sizes):.2g})"
        both = [max(min(sizes) for sizes, _ in series.values()), min(max(sizes) for sizes, _ in series.values())]
        gaps = [laws[M_VAR].loss(x) - laws[VAR].loss(x) for x in both]
        below = " and ".join(f"{abs(gap):.2f} bits {'below' if gap < 0 else 'above'}" for gap in gaps)
        line = f"at the smallest and the largest size that both cover, M-VAR's line lies {below} VAR's"
        sentences.append(f"At equal steps {slopes[0]}, {slopes[1]}; {line}; {where}.")
    return sentences


def _plot(rows: "Sequence[Row]", times: Mapping[str, Any], path: Path) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

    from mvar.charts import BLUE, ORANGE, new_figure, save, style_axes

    figure = new_figure(10, 4)
    for panel, (axis, label) in zip(figure.subplots(1, 2, sharey=True), AXES.items(), strict=True):
        for kind, colour in zip(KINDS, (ORANGE, BLUE), strict=True):
            x, loss = _series(rows, times, kind, axis)
            ends = [min(x), max(x)]
            panel.plot(x, loss, "o", color=colour, label=kind)
            if law := fit(x, loss):
                panel.plot(ends, [law.loss(end) for end in ends], color=colour)
        panel.set(xscale="log", yscale="log")
        for side, places, form in (
            (panel.xaxis, LogLocator(subs=(1, 2, 5)), EngFormatter()),
            (panel.yaxis, MaxNLocator(6), ScalarFormatter()),  # all losses lie within one power of ten
        ):
            side.set(major_locator=places, major_formatter=form, minor_locator=NullLocator())
        panel.legend(frameon=False)
        style_axes(panel, "Validation loss at equal steps, bits per token", label)
    save(figure, path)


STUDY = Study(
    name="scaling",
    title="Scaling",
    expected="Straight lines on logarithmic axes, M-VAR's below VAR's at equal compute.",
    variants=_variants,
    seeds=1,
    data_sets=1,
    losses_only=True,
    conclude=_conclude,
    plot=_plot,
)
