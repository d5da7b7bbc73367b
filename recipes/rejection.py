"""What rejection sampling buys: quality and variety of samples against the fraction that is kept.

    python -m recipes.rejection selector --data data/fashion-mnist --epochs 2 --seed 1 --out runs/selector.safetensors
    python -m recipes.rejection study --model fashion-mnist --data data/fashion-mnist \
        --judge runs/judge.safetensors --selector runs/selector.safetensors \
        --out docs/images/rejection/fashion-mnist --page-file docs/rejection.md

One set of candidates, eight per group, serves all rows: where 1 of n is kept, the first n of each group compete. So
all rows have the same number of images, and their distances can be compared. The classifier that chooses (the selector)
sees pixels as the model returns them, as with `mvar sample-best`. Another one (the judge) measures the accuracy, on
images in the originals' form.

Shapes: N groups of n candidates, B = N n candidates, or those of one batch; M images, F features; c h w of an image.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mvar.charts import BLUE, GREY, ORANGE, new_figure, save, style_axes
from mvar.checkpoint.hub import find
from mvar.data.order import evenly_spaced
from mvar.evaluation.frechet import too_few
from mvar.evaluation.intervals import share
from mvar.evaluation.manifold import overlap
from mvar.features.judge import Judge, accuracy
from mvar.files import file_sha256, writable_folder
from mvar.machine import machine
from mvar.model import Model, load
from mvar.sampling.engine import SampleOutput
from mvar.sampling.protocol import hashes
from mvar.sampling.rejection import SELF, Quota, best, best_places, find_scorer
from mvar.studies import measuring
from mvar.studies.distance import NAME, Distance
from mvar.studies.measuring import Form, Labelled
from mvar.studies.page import rounded
from mvar.studies.page import table as markdown
from recipes.fashion_mnist import FashionMnist
from recipes.measures import scale_names
from recipes.packaged import write_classifier
from recipes.shared import measured_on, publish, run_cli

FORM = FashionMnist.form
FILES = Form(FORM.side)  # the form of the files, which is what the model draws
OF = (1, 2, 4, 8)  # candidates of which one is kept
NEIGHBOURS = 3  # of precision and recall
METRICS = {"distance": NAME, "accuracy": "Judged right, %", "precision": "Precision, %", "recall": "Recall, %"}

KEYS = ("value", "low", "high")  # of a metric, and the ends of its 90 % interval
ASIDE = 0.09  # offset between lines, so that their error bars can be told apart
BARS = {"marker": "o", "markersize": 4, "elinewidth": 1, "capsize": 2}


class Measures:
    """What the judge, precision and recall (against some test images), and the distance (against all) measure."""

    def __init__(self, critic: Judge, test: Labelled, some: list[int]) -> None:
        self.critic, self.distance = critic, Distance(test.images_Nchw)
        self._manifold_NF = self.distance.features(test.images_Nchw[some])

    def of(self, features_NF: Tensor, judged_Mchw: Tensor, labels_M: Tensor) -> dict[str, dict[str, float | None]]:
        """The metrics of images with these features, and the judge's accuracy on images with these labels."""
        both = overlap(self._manifold_NF, features_NF, NEIGHBOURS)
        values = {
            "accuracy": share(accuracy(self.critic, judged_Mchw, labels_M), len(labels_M)),
            "distance": self.distance.with_interval(features_NF),
            "precision": share(both.precision, len(features_NF)),
            "recall": share(both.recall, len(self._manifold_NF)),
        }
        return {name: {key: getattr(value, key) for key in KEYS} for name, value in values.items()}


class Candidates(NamedTuple):
    """All candidates of one run, group by group."""

    images_Bchw: Tensor  # uint8, in the originals' form
    scores: dict[str, Tensor]  # (N, n) of each scorer
    seconds: dict[str, float]  # per candidate: to draw, and to score by each scorer


def selector(data: str, out: str, epochs: int, seed: int = 1) -> float:
    """Train the selector on the training images as their files are; return its accuracy on the test images.

    Args:
        data: folder with train/<class> and val/<class>.
        out: file to write, .safetensors.
        epochs: passes over the training images.
        seed: of initialisation and order; not that of the judge.
    """
    return write_classifier(FILES, data, out, epochs, seed)


def study(
    model: str,
    data: str,
    judge: str,
    selector: str,
    out: str,
    groups: int = 1000,
    seed: int = 0,
    page_file: str | None = None,
) -> dict[str, Any]:
    """Measure the kept images for each fraction and scorer, maps shared or not; writes report.json and rejection.png.

    Args:
        model: of Fashion-MNIST.
        data: folder with train/<class> and val/<class>.
        judge: file of the classifier that measures the accuracy.
        selector: file that `selector` wrote.
        out: folder to write into.
        groups: groups of candidates, which is the number of images in every row; their classes are those of the same
            number of validation images.
        seed: of the samples.
        page_file: documentation page to fill in, between the markers named like the last part of `out`.

    Raises:
        ValueError: one classifier for both purposes, or a model of other classes; raised before any long work.
    """
    folder, begun = writable_folder(out, "out"), time.perf_counter()
    critic, chooser = Judge.load(judge), Judge.load(selector)
    if all(map(torch.equal, critic.state_dict().values(), chooser.state_dict().values())):
        raise ValueError(f"selector = {selector!r}: is the judge itself; train another with another seed")
    loaded = load(model)
    test = measuring.originals(data, "val", FORM, loaded.classes)
    files = measuring.originals(data, "val", FILES, loaded.classes)
    train = measuring.originals(data, "train", FORM, loaded.classes)
    some = evenly_spaced(len(test.labels_N), groups)
    labels_N = test.labels_N[some]
    real_Nchw = train.images_Nchw[evenly_spaced(len(train.labels_N), len(some))]
    measures = Measures(critic, test, some)
    middle = len(loaded.tokenizer.config.sides) // 2
    candidates = {fork_at: _candidates(loaded, chooser, labels_N, seed, fork_at) for fork_at in (0, middle)}
    measured = {
        "model": model,
        "groups": len(labels_N),
        "seed": seed,
        "settings": asdict(loaded.defaults),
        "sha256": {"model": hashes(find(model)), "judge": file_sha256(judge), "selector": file_sha256(selector)},
        "features": measures.distance.describe(),
        "shared": scale_names(loaded)[middle - 1],
        "reference": len(test.labels_N),
        "neighbours": NEIGHBOURS,
        "selector_accuracy": accuracy(chooser, files.images_Nchw, files.labels_N),
        # The judge was trained on these real images, so it classifies the test images instead.
        "real": measures.of(measures.distance.features(real_Nchw), test.images_Nchw, test.labels_N),
        "rows": [row for fork_at, of_fork in candidates.items() for row in _rows(of_fork, fork_at, labels_N, measures)],
        "seconds": {str(fork_at): of_fork.seconds for fork_at, of_fork in candidates.items()},
        "minutes": (time.perf_counter() - begun) / 60,
        "machine": machine(),
    }
    report: dict[str, Any] = rounded(measured)  # so that the page shows the numbers of the file
    plot(report, folder / "rejection.png")
    publish(report, folder, table(report), page_file, folder.name)
    return report


def _rows(found: Candidates, fork_at: int, labels_N: Tensor, measures: Measures) -> Iterator[dict[str, Any]]:
    """What is measured of the kept images, for each scorer and fraction."""
    features_BF = measures.distance.features(found.images_Bchw)
    for name, scores_Nn in found.scores.items():
        for of in OF:
            kept_N = best_places(scores_Nn[:, :of], 1)[:, 0] + torch.arange(len(labels_N)) * max(OF)
            values = measures.of(features_BF[kept_N], found.images_Bchw[kept_N], labels_N)
            yield {"fork_at": fork_at, "judge": name, "of": of, **values}


def _candidates(loaded: Model, chooser: Judge, labels_N: Tensor, seed: int, fork_at: int) -> Candidates:
    """Draw a group for each label and score it in both ways, as `mvar sample-best` does."""
    sampler, size, n = loaded.sampler(seed), loaded.fitting_batch_size(), max(OF)
    scorers = {name: find_scorer(judge, sampler, labels_N) for name, judge in (("self", SELF), ("classifier", chooser))}
    images: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {name: [] for name in scorers}
    seconds = dict.fromkeys(("draw", *scorers), 0.0)
    for groups_g in measuring.batches(len(labels_N), "drawing candidates", max(1, size // n)):
        # Keep all: equal scores leave them in order.
        drawn = best(sampler, _equal, labels_N[groups_g], groups_g.tolist(), Quota(keep=n, of=n, fork_at=fork_at), size)
        seconds["draw"] += drawn.seconds
        images.append(FORM.of(drawn.pixels))
        labels_B = labels_N[groups_g].repeat_interleave(n)
        for name, scorer in scorers.items():
            start = time.perf_counter()
            scores[name].append(scorer(drawn, labels_B).double().view(-1, n))
            seconds[name] += time.perf_counter() - start
    return Candidates(
        torch.cat(images),
        {name: torch.cat(parts) for name, parts in scores.items()},
        {name: value / (n * len(labels_N)) for name, value in seconds.items()},
    )


def _equal(drawn: SampleOutput, labels_B: Tensor) -> Tensor:
    return torch.zeros(len(labels_B))


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    shared = f"to {report['shared']}"
    plain = report["rows"][0]  # the first of each group is the same for every scorer
    rows = [["none", "none", "1 of 1", *_values(plain)]]
    for row in report["rows"]:
        if row["of"] > plain["of"]:
            rows.append([row["judge"], shared if row["fork_at"] else "none", f"1 of {row['of']}", *_values(row)])
    rows.append(["real images", "", "", *_values(report["real"])])
    apart, forked = report["seconds"].values()
    warning = too_few(report["groups"], report["features"]["dimensions"])
    note = "" if warning is None else f"\n\nNote: {warning}."
    return (
        f"{markdown(['Judge', 'Shared maps', 'Kept', *METRICS.values()], rows)}\n\n"
        f"{report['groups']:,} images per row, with the class frequencies of the validation images, seed "
        f"{report['seed']}, the model's own settings; 90 % intervals in brackets. {NAME} is measured against all "
        f"{report['reference']:,} validation images, precision and recall (k = {report['neighbours']}, in the same "
        f"features) against {report['groups']:,} of them. The real images are {report['groups']:,} training images, "
        "but the judge sees the validation images. The classifier that chooses is not the judge; it classifies "
        f"{100 * report['selector_accuracy']:.1f} % of the validation images correctly. A candidate took "
        f"{apart['draw']:.4f} s to draw, {forked['draw']:.4f} s where {max(OF)} share maps, {apart['self']:.4f} s to "
        f"score by the model itself and {apart['classifier']:.4f} s by the classifier. Measured in "
        f"{report['minutes']:.1f} minutes on {measured_on(report['machine'])}.{note}"
    )


def _values(row: Mapping[str, Any]) -> list[str]:
    return ["{:.1f} ({:.1f} to {:.1f})".format(*_shown([row[name]], name)[:, 0]) for name in METRICS]


def _shown(line: list[Mapping[str, float]], metric: str) -> np.ndarray:
    """Values and ends of the intervals (3, rows), shares in percent."""
    factor = 1 if metric == "distance" else 100
    return factor * np.array([[row[key] for row in line] for key in KEYS])


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Every metric with its interval over the kept fraction, one line per scorer, dashed where maps are shared."""
    figure = new_figure(13, 3.8)
    kinds = [
        (judge, colour, fork_at, style)
        for judge, colour in (("self", BLUE), ("classifier", ORANGE))
        for fork_at, style in zip(report["seconds"], ("-", "--"), strict=True)
    ]
    for axes, (metric, title) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for i, (judge, colour, fork_at, style) in enumerate(kinds):
            line = [row[metric] for row in report["rows"] if (row["judge"], str(row["fork_at"])) == (judge, fork_at)]
            value, low, high = _shown(line, metric)
            x = np.arange(len(line)) + ASIDE * (i - (len(kinds) - 1) / 2)
            label = f"{judge}, {report['shared']} shared" if style == "--" else judge
            axes.errorbar(x, value, (value - low, high - value), color=colour, linestyle=style, label=label, **BARS)
        value, low, high = _shown([report["real"][metric]], metric)[:, 0]
        axes.axhline(value, color=GREY, linestyle=":", label="real images")
        axes.axhspan(low, high, color=GREY, alpha=0.2, linewidth=0)
        axes.set_xticks(range(len(OF)), [f"1 of {of}" for of in OF])
        style_axes(axes, title, "kept")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, handlelength=3, fontsize=8, frameon=False)
    save(figure, path)


if __name__ == "__main__":
    run_cli("python -m recipes.rejection", selector, study)
