"""What a study trains, and at which size; without torch, so that `--help` stays quick."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mvar.generator.config import GeneratorConfig
from mvar.scales import SIDES_256, Side
from mvar.studies.page import read_json
from mvar.training.config import GENERATOR_PRESETS

VERSION = 2  # of all that decides a run's result and is no setting; raise it when that changes
Variants = Mapping[str, GeneratorConfig]
VAR, M_VAR = "VAR", "M-VAR"
GLOBAL_ATTENTION: dict[str, Any] = {"attention": "global", "mamba": False}


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Images with classes, and the packaged tokenizer whose maps of them are trained on.

    Attributes:
        name: in files and tables.
        command: of `mvar data`, which writes the images; None for the user's own images.
        size: side of the images, in pixels.
        most: images of a split, where only some are used.
        concepts: of the icons, every n-th is used.
        tokenizer: packaged name; a bundle or run folder for the user's own images.
        sides: its token maps, from coarse to fine.
        grey: whether images are compared without colour.
        framed: pixels of a frame that the data set has and that comparisons leave out.
        views: of each training image; above 1 they are cropped at random.
        per_class: samples of each class in a comparison.
        seeds: number of runs of each variant.
    """

    name: str
    command: str | None
    size: int
    most: Mapping[str, int] = field(default_factory=dict)
    concepts: int = 1
    tokenizer: str
    sides: tuple[Side, ...]
    grey: bool = False
    framed: int = 0
    views: int = 1
    per_class: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a study: its model, training and data.

    Attributes:
        name: as --scale takes it.
        model: M-VAR at this scale; data sets set classes, codes and token maps.
        training: values of `GeneratorTraining`; the learning rate is a run's own.
        steps: optimizer steps of M-VAR, and of all others at equal steps.
        long: the same for studies that are `long`; 0 for `steps`.
        rates: learning rates to choose from, for 256 images, in rising order, by runs of `steps` on the first data set,
            as shorter ones favour large rates; a single one is taken as it is, and three go on where the best is the
            last or the first of them.
        data: what is trained on.
        spread: whether the processes of torchrun share each run, in place of having runs of their own.
        equal_minutes: whether every variant is also measured after the minutes that M-VAR takes, where these are known.
        sizes: depth and width of the models of the `scaling` study.
        caution: a sentence that goes with its results.
    """

    name: str
    model: GeneratorConfig
    training: Mapping[str, Any]
    steps: int
    long: int = 0
    rates: tuple[float, ...]
    data: tuple[DataSet, ...]
    spread: bool = False
    equal_minutes: bool = True
    sizes: tuple[tuple[int, int], ...]
    caution: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison of generators that differ in their configuration.

    Attributes:
        name: of the command.
        title: heading of its section.
        expected: what the paper or the mathematics lets one expect.
        variants: the generators by name, from the scale's M-VAR.
        baselines: the variants that others are compared with, one after another.
        seeds: most seeds of each variant; None for all of the data set's.
        data_sets: how many of the scale's data sets, from the first; None for all.
        long: whether its runs are as long as the scale affords, not just long enough to tell variants apart.
        losses_only: whether it does without samples and without equal minutes.
        conclude: sentences that its rows and the generators' times allow; None compares with the baselines.
        plot: draws the same into a file; None for loss and distance of each variant.
    """

    name: str
    title: str
    expected: str
    variants: Callable[[GeneratorConfig, Scale], Variants]
    baselines: tuple[str, ...] = (M_VAR,)
    seeds: int | None = None
    data_sets: int | None = None
    long: bool = False
    losses_only: bool = False
    conclude: Callable[..., list[str]] | None = None
    plot: Callable[..., None] | None = None

    def data_of(self, scale: Scale) -> tuple[DataSet, ...]:
        """The data sets that it uses."""
        return scale.data[: self.data_sets]

    def seeds_of(self, data: DataSet, asked: int | None = None) -> int:
        """The number of seeds on a data set, or as many as are asked for."""
        return asked or min(data.seeds, self.seeds or data.seeds)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training and its measurements; equal runs of different studies are one run.

    Attributes:
        scale: whose training values it has.
        data: what it is trained on.
        model: the generator.
        seed: of its initialisation, order of images, and samples.
        rate: learning rate for 256 images.
        marks: optimizer steps after which it is measured.
        sampled: whether samples are measured too, beside the loss.
    """

    scale: Scale
    data: DataSet
    model: GeneratorConfig
    seed: int
    rate: float
    marks: tuple[int, ...]
    sampled: bool = True

    @cached_property
    def config(self) -> dict[str, Any]:
        """All that decides the result, as JSON has it; values that a field has by default are left out.

        The user's own tokenizer and images are identified by their content, which records have, not by where they are.
        """
        data = differing(self.data)
        unused = {"seeds": True, "per_class": not self.sampled, "tokenizer": self.data.command is None}
        for name in [name for name, left_out in unused.items() if left_out]:
            data.pop(name, None)
        values = {
            "version": VERSION,
            "scale": self.scale.name,
            "data": data,
            "model": differing(self.model),
            "training": dict(self.scale.training),
            "seed": self.seed,
            "rate": self.rate,
            "marks": self.marks,
            "sampled": self.sampled,
        }
        return json.loads(json.dumps(values))

    @property
    def name(self) -> str:
        """Of its record and its folder."""
        return f"{self.data.name}-{digest(self.config)}"

    @property
    def peak_rate(self) -> float:
        """The learning rate that it trains with after the warm-up."""
        return self.rate * float(self.scale.training["batch_size"]) / 256


class Missing(ValueError):
    """A record that a study needs is not there."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"reports = {str(path.parent)!r}: lacks {path.name}; run the study, which resumes")
        self.file = path.name


def read_named(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose file is named by the `digest` of this configuration, which it holds.

    Raises:
        Missing: there is none.
        ValueError: it cannot be read, or is that of another configuration.
    """
    if not path.exists():
        raise Missing(path)
    try:
        record = read_json(path, "reports")
    except ValueError as error:
        raise ValueError(f"{error}; delete it and run the study again") from error
    if digest(record.get("config", {})) != digest(config):
        raise ValueError(f"reports = {str(path)!r}: is not of the configuration in its name; delete it and run again")
    return record


def digest(values: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits that identify a configuration."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def differing(config: DataSet | GeneratorConfig) -> dict[str, Any]:
    """The fields that differ from their defaults, so that fields added later change no hash."""
    values = config.written() if isinstance(config, GeneratorConfig) else asdict(config)
    usual = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(config)}
    return {name: value for name, value in values.items() if value != usual[name]}


# --- sizes ---

_SMALL_TRAINING = {
    "dtype": "float32", "batch_size": 16, "ema": 0.99, "lr_end": 1.0, "weight_decay": 0.05, "weight_decay_end": 0.05,
    "resize_factor": 1.0, "val_images": 500,
}  # fmt: skip
_OF_A_RUN = ("steps", "base_lr")  # in place of a scale's training
_EIGHT: tuple[Side, ...] = (1, 2, 3, 5, 8)

FASHION = DataSet(
    name="fashion-mnist",
    command="fashion-mnist",
    size=32,
    most={"train": 20_000, "val": 2000},
    tokenizer="fashion32",
    sides=_EIGHT,
    grey=True,
    framed=2,
    per_class=50,
    seeds=3,
)
ICONS = DataSet(
    name="icons",
    command="icons",
    size=32,
    concepts=3,
    tokenizer="icons32",
    sides=_EIGHT,
    grey=True,
    per_class=4,
    seeds=2,
)
EXCERPT = replace(FASHION, name="fashion-excerpt", most={"train": 1000, "val": 200}, per_class=5, seeds=2)
FULL_ICONS = DataSet(
    name="icons-64",
    command="icons",
    size=64,
    tokenizer="icons",
    sides=(1, 2, 3, 5, 8, 12, 16),
    grey=True,
    per_class=4,
    seeds=2,
)
IMAGENET = DataSet(
    name="imagenet", command=None, size=256, tokenizer="", sides=tuple(SIDES_256), views=4, per_class=10, seeds=1
)

SCALES = {
    "toy": Scale(
        name="toy",
        model=GeneratorConfig(depth=2, width=128, heads=4),
        training={**_SMALL_TRAINING, "val_images": 100},
        steps=60,
        rates=(1.25e-1,),
        data=(EXCERPT,),
        sizes=((1, 32), (1, 64), (2, 64), (2, 96)),
        caution="Runs this short mean nothing: they show how a study goes.",
    ),
    "small": Scale(
        name="small",
        model=GeneratorConfig(depth=4, width=128, heads=4),
        training=_SMALL_TRAINING,
        steps=400,
        long=1200,
        rates=(3.125e-2, 6.25e-2, 1.25e-1),
        data=(FASHION, ICONS),
        sizes=((2, 64), (3, 96), (4, 128), (5, 160)),
    ),
    "medium": Scale(
        name="medium",
        model=GeneratorConfig(depth=8, width=256, heads=4),
        training={**_SMALL_TRAINING, "batch_size": 128, "ema": 0.999, "val_images": 1000},
        steps=4000,
        rates=(1e-3, 2e-3, 4e-3),
        data=(FULL_ICONS,),
        sizes=((4, 128), (6, 192), (8, 256), (12, 384)),
    ),
    "paper": Scale(
        name="paper",
        model=GENERATOR_PRESETS["d16"]["model"],
        training={
            **{name: value for name, value in GENERATOR_PRESETS["d16"].items() if name not in ("model", *_OF_A_RUN)},
            "rank_timeout": 120.0,  # the first process draws and measures samples while the others wait
            "checkpoint_every": 5000,
            "validate_every": 5000,
        },
        steps=GENERATOR_PRESETS["d16"]["steps"],
        rates=(GENERATOR_PRESETS["d16"]["base_lr"],),
        data=(IMAGENET,),
        spread=True,
        equal_minutes=False,
        sizes=((12, 768), (16, 1024), (20, 1280), (24, 1536)),
    ),
}
