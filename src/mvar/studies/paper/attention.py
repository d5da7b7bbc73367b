"""Where attention looks and what Mamba keeps: Table 1 of the M-VAR paper, for any model.

    mvar study run attention      # the VAR and the M-VAR of the mixers study, which give Table 1
    mvar study run attention --model fashion-mnist --data data/fashion-mnist --images 512

| attention of a trained VAR | score, 256 px | computation, 256 px | score, 512 px | computation, 512 px |
|---|---|---|---|---|
| intra-scale | 79.6 % | 23.9 % | 77.1 % | 30.3 % |
| inter-scale | 20.4 % | 76.1 % | 22.9 % | 69.7 % |

The first command took a minute on one core of an AMD EPYC with the models of the mixers study at hand (their runs with
seed 0, as trained after M-VAR's minutes). Attention of an M-VAR sees its own scale only, so its scores do not apply.
The packaged models, fashion-mnist and icons, have more and larger scales.

To expect: most of the score inside a scale, more than if every visible key got the same.

Scores are the softmax weights of a teacher-forced pass over real tokens under their own class, averaged over images,
heads and queries: each token counts once, so that fine scales decide the total. The paper's computation is the share of
all L x L pairs of tokens (sum of a_k^2 over L^2, with a_k tokens in scale k), of which the mask hides those of a query
and a finer key. Of the visible pairs, 38.6 and 46.5 % are inside a scale.

Shapes: N images, L tokens, K scales, h heads of Mamba-2.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mvar.analysis.captures import capturing
from mvar.analysis.meter import WIDE, Meter, equal_weights, looks
from mvar.bench.results import columns, publish
from mvar.charts import new_figure
from mvar.checkpoint import hub
from mvar.files import writable_folder
from mvar.sampling.labels import file_name
from mvar.sampling.likelihood import token_log_probs
from mvar.sampling.protocol import hashes
from mvar.scales import SIDES_256, SIDES_512, ScaleSchedule, Side
from mvar.settings import Many, check
from mvar.studies.measuring import batches, load_with_generator, validation_tokens
from mvar.studies.page import read_json, shown, with_verdict
from mvar.text import listed, some

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Report = Mapping[str, Any]

NAME = "attention"
AT_ONCE = 16  # images
PAPER = {"256 px": (SIDES_256, 0.796), "512 px": (SIDES_512, 0.771)}  # sides, intra-scale score


def run(
    model: str,
    data: str,
    images: int,
    out: Path,
    device: str | None,
    name: str | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """Measure a model on validation images of a folder or token cache; writes attention-NAME.json and .png.

    `name` is what to call the model; by default the last part of where it is. `steps` it was trained for, if known.

    Returns:
        What was written: "score" (None if attention sees its own scale only), "equal_weights" (the same scores if each
        visible key got the same), "computation", and "blocks". See `looks` and `keeps`.

    Raises:
        ValueError: a model without a generator, a set that it cannot be measured on, or a report of this name that is
            of other weights, data or number of images.
    """
    check("images", images, Many)
    folder = writable_folder(out, "out")
    loaded = load_with_generator(model, device, "float32")
    generator = loaded.generator
    assert generator is not None
    schedule = generator.schedule
    meters = [Meter(block, schedule.areas) for block in generator.each_block()]
    if not any(meter.takers("") for meter in meters):
        raise ValueError(f"model = {model!r}: no block sees other scales, so there is nothing to measure; give another")
    tokens_NL, labels_N = validation_tokens(loaded, data, images)
    takers = {name: take for i, meter in enumerate(meters) for name, take in meter.takers(f"blocks.{i}").items()}
    name = name or Path(model).resolve().name
    measured = {"sha256": hashes(hub.find(model)), "data": _portable(data), "images": len(tokens_NL)}
    stem = f"{NAME}-{file_name(name)}"
    _check_free(folder / f"{stem}.json", measured)
    log_prob = 0.0
    with capturing(generator, takers):
        for rows_B in batches(len(tokens_NL), "measuring attention", AT_ONCE):
            maps = tokens_NL[rows_B].split(schedule.areas, dim=1)
            log_prob += float(token_log_probs(loaded.tokenizer, generator, maps, labels_N[rows_B]).sum())
    wide = [meter for meter in meters if meter.reach in WIDE]
    report = {
        "name": name,
        "model": _portable(model),
        "steps": steps,
        **measured,
        "sides": schedule.sides,
        "bits_per_token": -log_prob / tokens_NL.numel() / math.log(2),
        "score": _mean([meter.scores for meter in wide], schedule.areas),
        "equal_weights": _mean([equal_weights(schedule.areas, meter.reach) for meter in wide], schedule.areas),
        "computation": computation(schedule),
        "blocks": [meter.report() for meter in meters],
    }
    publish(report, stem, folder, table, plot)
    return report


def _check_free(path: Path, measured: Mapping[str, Any]) -> None:
    """Refuse to replace the report of another measurement."""
    if path.exists():
        before = read_json(path, "reports")
        if others := [name for name, value in measured.items() if before.get(name) != value]:
            raise ValueError(
                f"reports = {str(path)!r}: is of another measurement ({some(others)} differ); delete it, or give other "
                "reports"
            )


def computation(schedule: ScaleSchedule) -> dict[str, Any]:
    """The share of pairs (query, key) that lie inside a scale: of all L x L, as in the paper, and of the visible ones,
    whose key is not of a finer scale than the query.
    """
    inside = sum(area**2 for area in schedule.areas)
    visible = sum(area * end for area, end in zip(schedule.areas, schedule.offsets[1:], strict=True))
    return {"tokens": schedule.length, "of_all": inside / schedule.length**2, "of_visible": inside / visible}


def table(report: Report) -> str:
    """The report as lines of text."""
    trained = f"{report['steps']:,} steps of training, " if report["steps"] else ""
    found = f"{report['name']}: {trained}{report['images']:,} images, {report['bits_per_token']:.3f} bits per token"
    shares = [["", "intra-scale", "inter-scale"]]
    if score := report["score"]:
        shares += [
            _shares("score", score["intra"]),
            _shares("score if all visible keys got the same", report["equal_weights"]["intra"]),
        ]
    shares += [
        _shares("computation, of all pairs", report["computation"]["of_all"]),
        _shares("computation, of visible pairs", report["computation"]["of_visible"]),
    ]
    for name, (sides, score) in PAPER.items() if report["score"] else ():
        counted, even = computation(ScaleSchedule(sides)), _evenly(sides)
        shares += [
            _shares(f"the paper's VAR, {name}: score", score),
            _shares(f"the paper's VAR, {name}: score if all visible keys got the same", even),
            _shares(f"the paper's VAR, {name}: computation, of all pairs", counted["of_all"]),
            _shares(f"the paper's VAR, {name}: computation, of visible pairs", counted["of_visible"]),
        ]
    rows = [["block", "attention", "intra", "1 back", "2 back", "left after 1", "2", "3 scales"]]
    for i, block in enumerate(report["blocks"]):
        score, state = block["score"], block["state"]
        look = [score["intra"], *score["back"][:2]] if score else []
        keep = [_mean_left(state, n) for n in range(1, min(4, len(report["sides"])))] if state else []
        rows.append([str(i), block["attention"], *_percent(look, 3), *_percent(keep, 3)])
    notes = [] if report["score"] else ["score: does not apply, as attention sees its own scale only"]
    notes += [] if any(block["mamba"] for block in report["blocks"]) else ["left: does not apply without Mamba"]
    return "\n\n".join([found, columns(*shares), columns(*rows), *notes])


def results(reports: Path, page: Path) -> str:
    """What was measured of each model, and the verdict, as Markdown of a page in this folder."""
    found = [read_json(path, "reports") for path in sorted(reports.glob(f"{NAME}-*.json"))]
    return with_verdict([shown(reports, f"{NAME}-*.json", table, page)], verdict(found))


def verdict(reports: Sequence[Report]) -> list[str]:
    """Sentences on where the attention of each model looked, and on what its Mamba kept."""
    sentences = []
    if scored := [report for report in reports if report["score"]]:
        inside = _named(scored, lambda report: [report["score"]["intra"]])
        even = _range([report["equal_weights"]["intra"] for report in scored])
        before = _named(scored, lambda report: [report["score"]["back"][0]])
        evenly = _range([report["equal_weights"]["back"][0] for report in scored])
        sentences += [
            f"Of the attention score, {inside} lies inside a scale; if every visible key got the same, {even} would.",
            f"The paper has {_range([score for _, score in PAPER.values()])}, where "
            f"{_range([_evenly(sides) for sides, _ in PAPER.values()])} would.",
            f"Of the score on coarser scales, {before} goes to the scale just before; if every key got the same, "
            f"{evenly} would.",
        ]
    if keeping := [report for report in reports if any(block["state"] for block in report["blocks"])]:
        left = _named(keeping, lambda r: [_mean_left(block["state"], 1) for block in r["blocks"] if block["state"]])
        sentences.append(f"After one more scale, {left} of Mamba's state is left, by block, in the mean over scales.")
    return sentences


def _named(reports: Sequence[Report], shares: Callable[[Report], Sequence[float]]) -> str:
    """The range of each model's shares, with its name."""
    return listed([f"{_range(shares(report))} ({report['name']})" for report in reports])


def plot(report: Report) -> "Figure":
    """Heat maps over blocks and scales of what applies: the share inside the own scale, how far back, what is left."""
    blocks, K = report["blocks"], len(report["sides"])
    nothing = [math.nan] * K
    panels: dict[str, list[list[float]]] = {}
    if report["score"]:
        looks = [block["score"] for block in blocks]
        panels["score inside the own scale, %"] = [
            [100 * share for share in score["intra_by_scale"]] if score else nothing for score in looks
        ]
        panels["mean scales back of the other score"] = [
            [math.nan if d is None else d for d in score["distance"]] if score else nothing for score in looks
        ]
    if any(block["state"] for block in blocks):
        panels["Mamba's state left after this scale, %"] = [
            [math.nan, *(100 * row[0] for row in block["state"]["left"])] if block["state"] else nothing
            for block in blocks
        ]
    figure = new_figure(1 + 4.5 * len(panels), 1.8 + 0.25 * len(blocks))
    figure.suptitle(report["name"])
    for axes, (title, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _heat(axes, title, rows, report["sides"])
    return figure


def _heat(axes: "Axes", title: str, rows: Sequence[Sequence[float]], sides: Sequence[Any]) -> None:
    ends: dict[str, Any] = {"vmin": 0, "vmax": 100} if title.endswith("%") else {"vmin": 1}  # alike in all figures
    image = axes.imshow(rows, aspect="auto", cmap="viridis", **ends)
    axes.figure.colorbar(image, ax=axes)
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel="side of the scale", ylabel="block")
    axes.set_xticks(range(len(sides)), ["x".join(map(str, s)) if isinstance(s, list) else str(s) for s in sides])
    axes.set_yticks(range(0, len(rows), 1 + len(rows) // 16))


def _mean(scores: Sequence[Tensor], areas: Sequence[int]) -> dict[str, Any] | None:
    """What follows from the mean scores of several blocks."""
    return looks(torch.stack(list(scores)).mean(0), areas) if scores else None


def _evenly(sides: Sequence[Side]) -> float:
    """The share of score inside a scale if every key that global attention sees got the same."""
    areas = ScaleSchedule(sides).areas
    return float(looks(equal_weights(areas, "global"), areas)["intra"])


def _mean_left(state: Report, scales: int) -> float:
    """What is left after so many scales, the mean over where they begin."""
    left = [row[scales - 1] for row in state["left"] if len(row) >= scales]
    return sum(left) / len(left)


def _portable(path: str) -> str:
    """A name or relative path as it is; of an absolute one the last part, as the rest says nothing elsewhere."""
    return Path(path).name if Path(path).is_absolute() else path


def _range(shares: Sequence[float]) -> str:
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _shares(name: str, intra: float) -> list[str]:
    return [name, *_percent([intra, 1 - intra], 2)]


def _percent(shares: Sequence[float], columns: int) -> list[str]:
    return [f"{100 * share:.1f} %" for share in shares] + [""] * (columns - len(shares))
