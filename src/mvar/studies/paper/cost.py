"""What a model costs: parameters, arithmetic and time of VAR and M-VAR, beside Tables 2 and 4 of the M-VAR paper.

    mvar study run cost --rounds 3

| | parameters | time | | parameters | time |
|---|---|---|---|---|---|
| VAR-d12 | 132 M | 0.2 | M-VAR-d12 | 198 M | 0.2 |
| VAR-d16 | 310 M | 0.2 | M-VAR-d16 | 464 M | 0.2 |
| VAR-d20 | 600 M | 0.3 | M-VAR-d20 | 900 M | 0.4 |
| VAR-d24 | 1.0 B | 0.5 | M-VAR-d24 | 1.5 B | 0.6 |
| VAR-d30 | 2.0 B | 0.7 | M-VAR-d32 | 3.0 B | 1 |
| VAR-d36, 512 px | | 2 | M-VAR-d24, 512 px | | 1 |

The command took 8 minutes on two cores of an AMD EPYC. To expect: parameters as in the paper but for rounding, except
for M-VAR-d32: depth 32 has 3.66 B, and 3.0 B fit depth 30 (3.02 B). At 256 px small models take a smaller share of
M-VAR-d32's time than in the paper, which may count what does not grow with depth.

Weights are random, which take as long as trained ones. Large models neither fit side by side nor draw within a minute,
so each is drawn with two of its blocks, and the blocks' part of its time is scaled to its depth. Depths 12 and 16 are
also drawn whole, to check this; here only those of M-VAR were, and the estimates were 10 and 4 % above. The decoder is
timed once a round for each image size. One image, with guidance, on the CPU; the paper's times are of a GPU and a batch
that it does not name.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mvar.bench.cases import Case, Subject
from mvar.bench.measuring import SEED, take_turns
from mvar.bench.parts import Stopwatch
from mvar.bench.results import columns, publish
from mvar.bench.sampling import DTYPES
from mvar.charts import BLUE, ORANGE, new_figure, style_axes
from mvar.files import writable_folder
from mvar.generator.config import PRESETS
from mvar.generator.network import Generator
from mvar.machine import check_memory
from mvar.sampling.cost import cost
from mvar.settings import Count, check
from mvar.studies.page import read_json, shown, with_verdict
from mvar.text import some
from mvar.tokenizer.network import Tokenizer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Report = Mapping[str, Any]

NAME = "cost"
BLOCKS = 2  # of a model that is drawn in place of the whole
GUIDANCE = 1.5
# In the paper: parameters, and the time relative to the reference of the image size.
PAPER: dict[str, tuple[float | None, float | None]] = {
    "var-d12": (132e6, 0.2),
    "d12": (198e6, 0.2),
    "var-d16": (310e6, 0.2),
    "d16": (464e6, 0.2),
    "var-d20": (600e6, 0.3),
    "d20": (900e6, 0.4),
    "var-d24": (1.0e9, 0.5),
    "d24": (1.5e9, 0.6),
    "var-d30": (2.0e9, 0.7),
    "d30": (None, None),
    "d32": (3.0e9, 1.0),
    "d24-512": (None, 1.0),
    "var-d36-s": (None, 2.0),
}
REFERENCES = ("d32", "d24-512")  # of times, one for each image size
WHOLE = ("var-d12", "d12", "var-d16", "d16")  # drawn with all of their blocks too


class Split(NamedTuple):
    """Seconds of one image."""

    rest: float  # embedding, head, sampling, and AdaLN's vectors where blocks share them
    blocks: float  # with AdaLN's vectors where each block has its own
    decoder: float  # 0 where it did not run


def run(rounds: int, out: Path, dtype: str = "float32", cases: Sequence[str] | None = None) -> dict[str, Any]:
    """Count and time generator presets, all taking turns; writes cost.json and cost.png.

    Args:
        rounds: timed, after one to warm up.
        out: folder to write into.
        dtype: of the weights in use.
        cases: names of presets; None for those of the paper.

    Returns:
        "results", for each case: parameters, FLOP of one image, seconds (the median; of all rounds; of each part of a
        model with two blocks), "relative" to the reference of its image size (the median over rounds; None without
        it), the paper's figures, and for some "whole", the seconds of the whole model.

    Raises:
        ValueError: an unknown case or dtype, too little free memory, or a report of other cases that is there.
    """
    check("rounds", rounds, Count)
    names = list(PAPER if cases is None else dict.fromkeys(cases))
    if not names or (unknown := [name for name in names if name not in PRESETS]):
        raise ValueError(f"cases = {', '.join(unknown) if names else names}: choose from {', '.join(PRESETS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype = {dtype!r}: must be float32 or bfloat16")
    folder = writable_folder(out, "out")
    path = folder / f"{NAME}.json"
    if path.exists() and (before := [r["name"] for r in read_json(path, "reports")["results"]]) != names:
        raise ValueError(
            f"reports = {str(path)!r}: is of other cases ({some(before)}); delete it, or give other reports"
        )
    configs = {name: PRESETS[name] for name in names}
    subjects = {name: Subject(name, DTYPES[dtype], BLOCKS) for name in names}
    subjects |= {_whole(name): Subject(name, DTYPES[dtype]) for name in names if name in WHOLE}
    decoding = {_images(name): name for name in reversed(names)}  # the first case of each kind of images
    splits = _timed(subjects, [*decoding.values()], rounds)
    seconds = {
        name: [
            split.rest + config.depth / BLOCKS * split.blocks + decoder.decoder
            for split, decoder in zip(splits[name], splits[decoding[_images(name)]], strict=True)
        ]
        for name, config in configs.items()
    }
    references = {_images(name): name for name in REFERENCES if name in names}
    results = []
    for name, config in configs.items():
        whole, published = splits.get(_whole(name)), PAPER.get(name, (None, None))
        reference = references.get(_images(name))
        result = {
            "name": name,
            "kind": "M-VAR" if config.mixers[0].mamba else "VAR",
            **_counts(name),
            "seconds": median(seconds[name]),
            "rounds": seconds[name],
            "two_blocks": {part: median(getattr(s, part) for s in splits[name]) for part in Split._fields},
            "whole": median(map(sum, whole)) if whole else None,
            "reference": reference,
            "relative": reference and _relative(seconds[name], seconds[reference]),
            "paper": dict(zip(("parameters", "time"), published, strict=True)),
        }
        results.append(result)
    report = {"dtype": dtype, "guidance": GUIDANCE, "blocks": BLOCKS, "results": results}
    publish(report, NAME, folder, table, plot)
    return report


def _timed(subjects: Mapping[str, Subject], decoding: Sequence[str], rounds: int) -> dict[str, list[Split]]:
    """Draw an image with each subject in turn; those of `decoding`, and whole models, decode it."""
    own = sum(subject.weight_bytes(tokenizer=name in decoding) for name, subject in subjects.items())
    image = max(subject.weight_bytes() + subject.image_bytes() for subject in subjects.values())  # one in the making
    check_memory(own + image, f"cases: {len(subjects)} models of {BLOCKS} or all blocks", "give fewer")
    tokenizers: dict[Hashable, Tokenizer] = {}
    turns = {}
    for name, subject in subjects.items():
        model = subject.model()
        model = replace(model, tokenizer=tokenizers.setdefault(_images(subject.name), model.tokenizer))
        case = Case(model.sampler(SEED, guidance=GUIDANCE), decodes=name in decoding or subject.depth is None)
        turns[name] = partial(_draw, case)
    return take_turns(turns, rounds)


def _draw(case: Case) -> Split:
    watch = Stopwatch()
    with watch.watching(case.sampler):
        case.draw(1, watch)
    # Vectors of AdaLN, also the head's few, are made once for all scales, of all blocks or for each.
    shared = case.sampler.generator.config.shared_adaln
    seconds = dict.fromkeys(Split._fields, 0.0)
    for (part, scale), spent in watch.seconds.items():
        in_blocks = part in ("attention", "mamba", "mlp") or (part == "adaln" and not (shared and scale is None))
        seconds["decoder" if part == "decoder" else "blocks" if in_blocks else "rest"] += spent
    return Split(**seconds)


def _whole(name: str) -> str:
    return f"{name}, whole"


def _images(name: str) -> Hashable:
    """What a preset's images and token maps are like; presets of one kind share the tokenizer."""
    config = Subject(name, "float32").configs()[0]
    return config.image_shape, config.schedule


def _counts(name: str) -> dict[str, Any]:
    """What needs no measuring."""
    tokenizer, config = Subject(name, "float32").configs()
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Generator(config).parameters())
    counted = cost(tokenizer, config)
    return {
        "depth": config.depth,
        "pixels": max(tokenizer.image_shape),
        "parameters": parameters,
        "generator_flop": counted.generator_flop,
        "decoder_flop": counted.decoder_flop,
    }


def table(report: Report) -> str:
    """The report as lines of text."""
    rows = [["", "px", "parameters", "paper", "TFLOP", "s", "drawn whole", "relative", "paper"]]
    for r in report["results"]:
        found = [f"{r['parameters'] / 1e6:,.0f} M", _or_blank(r["paper"]["parameters"], 1e-6, ",.0f", " M")]
        found += [f"{r['generator_flop'] / 1e12:.2f}", f"{r['seconds']:.2f}", _or_blank(r["whole"], 1, ".2f")]
        found += [_or_blank(r["relative"], 1, ".2f"), _or_blank(r["paper"]["time"], 1, "g")]
        rows.append([r["name"], str(r["pixels"]), *found])
    how = (
        f"{report['dtype']}, guidance {report['guidance']:g}; FLOP without the decoder, seconds with it; seconds are "
        "medians over rounds, relative (to d32 and d24-512) is the median of the rounds' ratios"
    )
    counts = {r["name"]: r["parameters"] for r in report["results"]}
    note = (
        f"the paper's 3.0 B parameters of M-VAR-d32 do not fit depth 32, which has {counts.get('d32', 0) / 1e9:.2f} B"
    )
    return "\n\n".join([columns(*rows), how, *([note] if "d32" in counts else [])])


def results(reports: Path, page: Path) -> str:
    """What was measured, as Markdown of a page in this folder."""
    found = [sentence for path in reports.glob(f"{NAME}.json") for sentence in verdict(read_json(path, "reports"))]
    return with_verdict([shown(reports, f"{NAME}.json", table, page)], found)


def verdict(report: Report) -> list[str]:
    """M-VAR beside the VAR of its depth, and at 512 px the VAR that the paper compares with M-VAR-d24."""
    found = {r["name"]: r for r in report["results"]}
    sentences = []
    if pairs := [(r, found[f"var-{name}"]) for name, r in found.items() if f"var-{name}" in found]:
        flop, time = _ratios(pairs)
        sentences.append(
            f"M-VAR takes {flop} times the FLOP of a VAR of the same depth, and {time} times as long{_by_round(pairs)}."
        )
    if {"d24", "var-d30"} <= found.keys():
        pair = found["d24"], found["var-d30"]
        less = _less(_relative(*(r["rounds"] for r in pair)))
        fewer = _less(pair[0]["parameters"] / pair[1]["parameters"])
        sentences.append(
            f"M-VAR-d24 takes {less} time than VAR-d30 and has {fewer} parameters; in the paper 14 and 25 % less."
        )
    if {"var-d36-s", "d24-512"} <= found.keys():
        flop, time = _ratios([(found["var-d36-s"], found["d24-512"])])
        sentences.append(
            f"At 512 px, VAR-d36-s takes {flop} times the FLOP and {time} times the time of M-VAR-d24"
            f"{_by_round([(found['var-d36-s'], found['d24-512'])])}; in the paper it takes "
            f"{found['var-d36-s']['paper']['time']:g} times the time."
        )
    return sentences


def _ratios(pairs: Sequence[tuple[Report, Report]]) -> list[str]:
    """What the first of each pair takes of FLOP and of time, relative to the second: the range over pairs."""
    flop = [a["generator_flop"] / b["generator_flop"] for a, b in pairs]
    time = [_relative(a["rounds"], b["rounds"]) for a, b in pairs]
    ends = [(f"{min(ratios):.2f}", f"{max(ratios):.2f}") for ratios in (flop, time)]
    return [low if low == high else f"{low} to {high}" for low, high in ends]


def _by_round(pairs: Sequence[tuple[Report, Report]]) -> str:
    """How far single rounds are apart, in brackets."""
    found = [a / b for one, other in pairs for a, b in zip(one["rounds"], other["rounds"], strict=True)]
    return f" ({min(found):.2f} to {max(found):.2f} in single rounds)"


def _less(ratio: float) -> str:
    return f"{100 * abs(1 - ratio):.0f} % {'less' if ratio < 1 else 'more'}"


def _relative(rounds: Sequence[float], others: Sequence[float]) -> float:
    """Seconds relative to others of the same rounds: the median over rounds."""
    return median(a / b for a, b in zip(rounds, others, strict=True))


def plot(report: Report) -> "Figure":
    """Parameters, FLOP and seconds over depth, a line for each kind and image size; hollow: the paper's."""
    figure = new_figure(13, 4)
    panels = figure.subplots(1, 3)
    lines: dict[tuple[str, int], list[Report]] = {}
    for r in report["results"]:
        lines.setdefault((r["kind"], r["pixels"]), []).append(r)
    seconds = {r["name"]: r["seconds"] for r in report["results"]}
    sizes = sorted({pixels for _, pixels in lines})
    for (kind, pixels), line in lines.items():
        style: dict[str, Any] = {"color": BLUE if kind == "M-VAR" else ORANGE, "marker": "os"[sizes.index(pixels) % 2]}
        depths = [r["depth"] for r in line]
        ours = ["parameters", "generator_flop", "seconds"]
        for axes, key, unit in zip(panels, ours, (1e9, 1e12, 1), strict=True):
            axes.plot(depths, [r[key] / unit for r in line], **style, label=f"{kind}, {pixels} px")
        for r in line:
            hollow = {**style, "fillstyle": "none", "linestyle": "none", "markersize": 10}
            if r["paper"]["parameters"]:
                panels[0].plot(r["depth"], r["paper"]["parameters"] / 1e9, **hollow)
            if r["paper"]["time"] and r["reference"]:
                panels[2].plot(r["depth"], r["paper"]["time"] * seconds[r["reference"]], **hollow)
    titles = (
        "billion parameters (hollow: paper)",
        "TFLOP of an image",
        "seconds (hollow: the paper's relative time)",
    )
    for axes, title in zip(panels, titles, strict=True):
        style_axes(axes, title, "depth")
        axes.set_xticks(sorted({r["depth"] for r in report["results"]}))
        axes.set_ylim(0, None)
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def _or_blank(value: float | None, factor: float, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value * factor:{form}}{unit}"
