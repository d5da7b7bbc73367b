"""Guidance and filter sweep: how a model's samples change with guidance, temperature, top-k and top-p.

Every guidance is tried with every temperature, without filters; then, at the best of these, each top-k and each top-p
by itself. Only training images are used: most are compared with the samples; the same number per class as is drawn is
set aside to measure what real images would get.

Shapes: N images, C classes, F features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mvar.charts import can_plot
from mvar.data.order import evenly_spaced
from mvar.evaluation.images import mean_distance
from mvar.features.judge import Judge
from mvar.files import writable_folder
from mvar.job import Job, check_same
from mvar.sampling.config import SamplingSettings
from mvar.settings import Several, check
from mvar.studies import measuring, page, sweep_figure
from mvar.studies.distance import NAME, SIDE, Distance, fingerprint
from mvar.studies.grid import TRIED, Grid
from mvar.studies.measuring import Form, Labelled

FILE, FIGURE = "sweep.json", "sweep.png"
REAL_PER_CLASS = 1000  # training images that samples are compared with, about


def sweep(
    model: str,
    data: str,
    judge: str,
    out: str,
    grid: Grid,
    form: Form | None = None,
    samples_per_class: int = 100,
    seed: int = 1,
    device: str | None = None,
) -> dict[str, Any]:
    """Try every setting of the grid and choose one; writes sweep.json after each, and sweep.png at the end.

    Where sweep.json is there already, the sweep goes on after its last trial. Images are compared in a form, by default
    as the model draws them, at most 64 pixels a side. As many real images as samples are set aside.

    Returns:
        The chosen trial: see `best`.

    Raises:
        ValueError: an invalid setting, too few samples or real images, a judge of other classes, or a sweep.json of
            other settings, weights or images.
    """
    check("samples_per_class", samples_per_class, Several)
    path = writable_folder(out, "out") / FILE
    loaded = measuring.load_with_generator(model, device)
    scales = len(loaded.tokenizer.config.sides)
    grid.check(scales)
    form = form or _form_of(loaded.tokenizer.config.image_shape, model)
    critic = measuring.load_judge(judge, loaded.classes)
    real = measuring.originals(data, "train", form, loaded.classes, REAL_PER_CLASS + samples_per_class)
    reference, aside = set_aside(real, samples_per_class)
    settings = {
        "model": fingerprint(*_weights(loaded.tokenizer), *_weights(loaded.generator)),
        "judge": fingerprint(*_weights(critic)),
        "data": fingerprint(reference.images_Nchw, aside.images_Nchw),
        "form": asdict(form),
        **asdict(grid),
        "samples_per_class": samples_per_class,
        "seed": seed,
    }
    _trials(path, settings)  # refuses before the long work
    measure = _measure(reference, critic)
    report: dict[str, Any] = {
        "settings": settings,
        "reference": len(reference.labels_N),
        "images": len(aside.labels_N),
        "real": measure(aside),
    }

    def measured(plan: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """All trials of the plan, read from the file: it makes no difference when they were measured."""

        def make(i: int) -> None:
            drawn = measuring.draw(loaded, form, samples_per_class, seed, SamplingSettings(**plan[i]))
            trials = [*_trials(path, settings), {**plan[i], **measure(drawn.images)}]
            page.write_json(path, {**report, "trials": trials})
            print(described(trials[-1]), flush=True)

        Job(
            folder=path.parent,
            pieces=range(len(plan)),
            noun="trials",
            name=str,
            is_complete=lambda i: i < len(_trials(path, settings)),
        ).make_missing(make)
        return _trials(path, settings)

    plan = grid.unfiltered(scales)
    at = best(measured(plan)[: len(plan)], grid)
    trials = measured(plan + grid.filtered(at))
    chosen = best(trials, grid)
    report |= {"chosen": chosen, "trials": trials}
    page.write_json(path, report)
    if can_plot(FIGURE):
        sweep_figure.plot(report, path.with_name(FIGURE))
    print(f"chosen: {described(chosen)}\nreal images: {_measures(report['real'])}")
    return chosen


def best(trials: Sequence[dict[str, Any]], grid: Grid) -> dict[str, Any]:
    """The trial with the smallest distance among those of enough accuracy whose spread lies in the band.

    If there is none, the most accurate. The distance alone hardly reacts to confused classes.
    """
    low, high = grid.spread_band or (0, float("inf"))
    enough = [t for t in trials if low <= t["spread_ratio"] <= high and t["accuracy"] >= grid.least_accuracy]
    if enough:
        return min(enough, key=lambda trial: trial["distance"])
    return max(trials, key=lambda trial: trial["accuracy"])


def described(trial: Mapping[str, Any]) -> str:
    """A trial in one line."""
    setting = ", ".join(f"{name.replace('_', '-')} {page.numbers(trial[name])}" for name in TRIED)
    return f"{setting}: {_measures(trial)}"


def set_aside(real: Labelled, per_class: int) -> tuple[Labelled, Labelled]:
    """Split real images into two disjoint sets, the second with `per_class` images of each class, evenly spaced.

    Raises ValueError where a class would have fewer than two images left.
    """
    chosen: list[int] = []
    for c, name in enumerate(real.classes):
        rows = (real.labels_N == c).nonzero()[:, 0].tolist()
        if len(rows) < per_class + 2:
            held = f"as many training images are set aside, and {name!r} has {len(rows)}"
            raise ValueError(f"samples_per_class = {per_class}: {held}; give fewer")
        chosen += [rows[i] for i in evenly_spaced(len(rows), per_class)]
    kept = sorted({*range(len(real.labels_N))} - {*chosen})
    first, second = (
        real._replace(images_Nchw=real.images_Nchw[rows], labels_N=real.labels_N[rows]) for rows in (kept, chosen)
    )
    return first, second


def _measure(reference: Labelled, critic: Judge) -> Callable[[Labelled], dict[str, float]]:
    """A function that measures a set of images against a reference."""
    real_C = mean_distance(reference.images_Nchw, reference.labels_N, len(reference.classes))
    distance = Distance(reference.images_Nchw)

    def measure(images: Labelled) -> dict[str, float]:
        features_NF = distance.features(images.images_Nchw)
        judged = measuring.judged(critic, images, real_C)
        return {
            "distance": distance.of_features(features_NF),
            "accuracy": judged["accuracy"],
            **distance.overlap(features_NF),
            "spread_ratio": judged["spread_ratio"],
        }

    return measure


def _trials(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials that the file holds; raises ValueError where it is of other settings, a line for each."""
    if not path.exists():
        return []
    report = page.read_json(path, "out")
    check_same(report.get("settings", {}), page.rounded(settings), "out", path.parent)
    return report["trials"]


def _measures(trial: Mapping[str, float]) -> str:
    shares = [f"{name.replace('_', ' ')} {trial[name]:.3f}" for name in ("precision", "recall", "spread_ratio")]
    return f"{NAME} {trial['distance']:.1f}, accuracy {100 * trial['accuracy']:.2f} %, {', '.join(shares)}"


def _form_of(image_shape: tuple[int, int], model: str) -> Form:
    h, w = image_shape
    if h != w:
        raise ValueError(f"model = {model!r}: draws {w}x{h} pixels, and only square images are compared")
    return Form(min(h, SIDE))


def _weights(network: nn.Module | None) -> list[Tensor]:
    return [] if network is None else list(network.state_dict().values())
