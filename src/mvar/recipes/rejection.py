"""What rejection sampling buys: quality and variety of samples against the share that is kept.

    python -m mvar.recipes.fashion_mnist judge --data data/fashion-mnist --epochs 2 --seed 1 \
        --out runs/selector.safetensors
    python -m mvar.recipes.rejection --model fashion-mnist --data data/fashion-mnist --judge runs/judge.safetensors \
        --selector runs/selector.safetensors --out docs/images/rejection/fashion-mnist --page-file docs/rejection.md
    python -m mvar.recipes.emoji judge --data data/emoji --epochs 4 --seed 1 --out runs/emoji-selector.safetensors
    python -m mvar.recipes.rejection --model emoji --data data/emoji --judge runs/emoji-judge.safetensors \
        --selector runs/emoji-selector.safetensors --out docs/images/rejection/emoji --page-file docs/rejection.md

One set of candidates, eight a group, serves all shares: where 1 of n is kept, the first n of each group compete. So all
rows have as many images, and distances can be compared. The classifier that chooses and the one that tells the accuracy
are two, trained from other seeds.

Shapes: N groups of n candidates, B = N n candidates, or as many as are drawn at once; F features; c h w an image.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mvar.charts import BLUE, GREY, ORANGE, finish, new_figure, save
from mvar.data.progress import track
from mvar.data.subset import evenly_spaced
from mvar.evaluation.manifold import overlap
from mvar.features.judge import Judge, accuracy
from mvar.files import writable_folder
from mvar.machine import machine
from mvar.model import Model, load
from mvar.recipes import measuring, page
from mvar.recipes.cli import run_cli
from mvar.recipes.distance import NAME, Distance
from mvar.recipes.emoji import Emoji
from mvar.recipes.fashion_mnist import FashionMnist
from mvar.recipes.measuring import Form
from mvar.sampling.engine import SampleOutput
from mvar.sampling.rejection import Choice, best, best_places, class_scores, own_scores

FORMS = {recipe.name: recipe.form for recipe in (FashionMnist, Emoji)}
OF = (1, 2, 4, 8)  # candidates of which one is kept
NEIGHBOURS = 3  # of precision and recall
METRICS = {"distance": NAME, "accuracy": "Judged right, %", "precision": "Precision, %", "recall": "Recall, %"}


class Candidates(NamedTuple):
    """All candidates of one run, group by group."""

    images_Bchw: Tensor  # uint8, in the originals' form
    scores: dict[str, Tensor]  # by judge, (N, n)
    seconds: dict[str, float]  # a candidate: to draw, and to score by each judge


def study(
    model: str,
    data: str,
    judge: str,
    selector: str,
    out: str,
    groups: int = 400,
    seed: int = 0,
    page_file: str | None = None,
) -> dict[str, Any]:
    """Measure what is kept, for each share and judge, maps shared or not; writes report.json and rejection.png.

    Args:
        model: a packaged one.
        data: folder with train/<class> and val/<class>.
        judge: classifier that tells how many images show their class.
        selector: another one, which chooses.
        out: folder to write into.
        groups: of candidates, which is how many images every row has; of the classes of as many validation images.
        seed: of the samples.
        page_file: Markdown page that takes the table, between markers with the name of `out`.

    Returns:
        What report.json holds.

    Raises:
        ValueError: a model of another data set, or one classifier for both uses; before any work.
    """
    folder, begun = writable_folder(out, "out"), time.perf_counter()
    if (form := FORMS.get(model)) is None:
        raise ValueError(f"model = {model!r}: choose from {', '.join(FORMS)}")
    critic, chooser = Judge.load(judge), Judge.load(selector)
    if all(map(torch.equal, critic.state_dict().values(), chooser.state_dict().values())):
        raise ValueError(f"selector = {selector!r}: is the judge itself; train another with another seed")
    loaded = load(model)
    test = measuring.originals(data, "val", form, loaded.classes)
    some = evenly_spaced(len(test.labels_N), groups)
    labels_N = test.labels_N[some]
    train = measuring.originals(data, "train", form, loaded.classes)
    real_Nchw = train.images_Nchw[evenly_spaced(len(train.labels_N), len(some))]
    distance = Distance(test.images_Nchw)
    manifold_NF = distance.features(test.images_Nchw[some])

    def compared(features_NF: Tensor) -> dict[str, float]:
        both = overlap(manifold_NF, features_NF, NEIGHBOURS)
        return {"distance": distance.of_features(features_NF), "precision": both.precision, "recall": both.recall}

    rows, seconds = [], {}
    middle = len(loaded.tokenizer.config.sides) // 2
    for fork_at in (0, middle):
        found = _candidates(loaded, form, chooser, labels_N, seed, fork_at)
        seconds[str(fork_at)] = found.seconds
        features_BF = distance.features(found.images_Bchw)
        for name, scores_Nn in found.scores.items():
            for of in OF:
                kept_N = best_places(scores_Nn[:, :of], 1)[:, 0] + torch.arange(len(labels_N)) * max(OF)
                right = accuracy(critic, found.images_Bchw[kept_N], labels_N)
                values = {"accuracy": right, **compared(features_BF[kept_N])}
                rows.append({"fork_at": fork_at, "judge": name, "of": of, **values})
                print(rows[-1], flush=True)
    report = {
        "model": model,
        "groups": len(labels_N),
        "seed": seed,
        "settings": measuring.settings_of(loaded),
        "shared": measuring.scale_names(loaded)[middle - 1],
        "reference": len(test.labels_N),
        "neighbours": NEIGHBOURS,
        "selector_accuracy": accuracy(chooser, test.images_Nchw, test.labels_N),
        "real": {
            "accuracy": accuracy(critic, test.images_Nchw, test.labels_N),  # which it has not learnt from
            **compared(distance.features(real_Nchw)),
        },
        "rows": rows,
        "seconds": seconds,
        "minutes": (time.perf_counter() - begun) / 60,
        "machine": machine(),
    }
    page.write_json(folder / "report.json", report)
    draw(report, folder / "rejection.png")
    print(table(report))
    if page_file is not None:
        page.fill(page_file, table(report), folder.name)
    return report


def _candidates(loaded: Model, form: Form, chooser: Judge, labels_N: Tensor, seed: int, fork_at: int) -> Candidates:
    """Draw and score a group for each label."""
    sampler, size = loaded.sampler(seed), loaded.fitting_batch_size()
    images, judging = [], 0.0

    def own(drawn: SampleOutput, labels_B: Tensor) -> Tensor:
        nonlocal judging
        images.append(form.of(drawn.pixels))
        start = time.perf_counter()
        scores_B = own_scores(sampler.tokenizer, sampler.generator, drawn.tokens or (), labels_B)
        judging += time.perf_counter() - start
        return scores_B

    drawn = best(sampler, own, labels_N, range(len(labels_N)), Choice(1, max(OF), fork_at), size)
    images_Bchw, labels_B = torch.cat(images), labels_N.repeat_interleave(max(OF))
    start = time.perf_counter()
    parts = list(zip(images_Bchw.split(size), labels_B.split(size), strict=True))
    scores_B = torch.cat(
        [
            class_scores(chooser, some.expand(-1, 3, -1, -1) / 255, labels)
            for some, labels in track(parts, len(parts), "scores")
        ]
    )
    taken = {"draw": drawn.seconds - judging, "self": judging, "classifier": time.perf_counter() - start}
    return Candidates(
        images_Bchw,
        {"self": drawn.scores_Gn, "classifier": scores_B.view_as(drawn.scores_Gn)},
        {name: value / len(labels_B) for name, value in taken.items()},
    )


def table(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    shared = f"to {report['shared']}"
    plain = report["rows"][0]  # the first of each group, whoever judges and whatever is shared
    rows = [["none", "none", "1 of 1", *_values(plain)]]
    for row in report["rows"]:
        if row["of"] > plain["of"]:
            rows.append([row["judge"], shared if row["fork_at"] else "none", f"1 of {row['of']}", *_values(row)])
    rows.append(["real images", "", "", *_values(report["real"])])
    apart, forked = report["seconds"].values()
    machine, chooses = report["machine"], f"{100 * report['selector_accuracy']:.1f} %"
    return (
        f"{page.table(['Judge', 'Shared maps', 'Kept', *METRICS.values()], rows)}\n\n"
        f"{report['groups']:,} images a row, classes as among the validation images, seed {report['seed']}, the "
        f"model's own settings. {NAME} is against all {report['reference']:,} validation images, precision and recall "
        f"(k = {report['neighbours']}, in the same features) against {report['groups']:,} of them. The real images are "
        f"as many training images; those judged are the validation images. The classifier that chooses is not the one "
        f"that judges what was kept; it is right about {chooses} of the validation images. A candidate took "
        f"{apart['draw']:.4f} s to draw, {forked['draw']:.4f} s where {max(OF)} share maps, {apart['self']:.4f} s to "
        f"score by the model itself and {apart['classifier']:.4f} s by the classifier. Measured in "
        f"{report['minutes']:.1f} minutes on {machine['cores']} cores ({machine['processor']}, {machine['threads']} "
        f"threads, torch {machine['torch']})."
    )


def _values(row: Mapping[str, Any]) -> list[str]:
    return [f"{row[name] * (1 if name == 'distance' else 100):.1f}" for name in METRICS]


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Every metric over the kept share, a line for each judge, dashed where maps are shared."""
    figure = new_figure(13, 3.4)
    for axes, (metric, title) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        factor = 1 if metric == "distance" else 100
        for judge, colour in (("self", BLUE), ("classifier", ORANGE)):
            for fork_at, style in zip(report["seconds"], ("-", "--"), strict=True):
                line = [row for row in report["rows"] if (row["judge"], str(row["fork_at"])) == (judge, fork_at)]
                label = f"{judge}, {report['shared']} shared" if style == "--" else judge
                values = [factor * row[metric] for row in line]
                axes.plot(range(len(line)), values, color=colour, linestyle=style, marker="o", label=label)
        axes.axhline(factor * report["real"][metric], color=GREY, linestyle=":", label="real images")
        axes.set_xticks(range(len(OF)), [f"1 of {of}" for of in OF])
        finish(axes, title, "kept")
    axes.legend(fontsize=8, frameon=False)
    save(figure, path)


if __name__ == "__main__":
    run_cli(study, "python -m mvar.recipes.rejection")
