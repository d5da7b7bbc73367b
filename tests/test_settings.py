"""Numbers that nobody should send: refused in one line, before anything is allocated."""

import math
import typing
from collections import namedtuple
from dataclasses import field, replace
from typing import Annotated

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from mvar.checkpoint import official
from mvar.commands.table import COMMANDS, imported
from mvar.generator.config import GeneratorConfig
from mvar.model import load
from mvar.sampling.config import SamplingSettings
from mvar.scales import Sides
from mvar.settings import Many, PartialShare, Real, Switch, Whole, settings
from mvar.tokenizer.config import TokenizerConfig
from mvar.training.config import GeneratorTraining, TokenizerTraining

TRAIN = {
    "tokenizer": ["train", "tokenizer", "--preset", "tiny32", "--data", "nowhere", "--out", "new/run"],
    "generator": ["train", "generator", "--preset", "tiny32", "--tokenizer", "fashion-mnist"],
}
TRAIN["generator"] += TRAIN["tokenizer"][4:]


def bounds(kind) -> list[Whole]:
    """What a type says of the whole numbers that it takes."""
    return [rule for rule in getattr(kind, "__metadata__", ()) if isinstance(rule, Whole)] + [
        rule for part in typing.get_args(kind) for rule in bounds(part)
    ]


def takes_integers(kind) -> bool:
    """Whether values of a type are integers, or hold them."""
    inside = () if typing.get_origin(kind) is typing.Literal else typing.get_args(kind)
    return kind is int or any(map(takes_integers, inside))


def test_every_whole_number_that_a_user_can_give_has_its_bounds():
    sources = [GeneratorConfig, TokenizerConfig, GeneratorTraining, TokenizerTraining, SamplingSettings]
    sources += [imported(command.function) for command in COMMANDS.values()]
    hints = [typing.get_type_hints(source, include_extras=True) for source in sources]
    found = {name: kind for of_one in hints for name, kind in of_one.items() if takes_integers(kind)}
    assert len(found) > 40
    assert [name for name, kind in found.items() if not bounds(kind)] == []


@settings
class Numbers:
    steps: Many = 1
    workers: Annotated[int, Whole(0, 256)] = 0
    sides: Sides = field(default_factory=list)
    multipliers: Annotated[tuple[int, ...], Whole(1, 64)] = ()
    base_lr: Annotated[float, Real(0)] = 0.0
    betas: tuple[PartialShare, PartialShare] = (0.0, 0.0)
    resume: Switch = False


@pytest.mark.parametrize(
    ("values", "problems"),
    [
        ({"steps": 10**20}, ["steps = 100000000000000000000: must lie in 1 to 1,000,000,000"]),
        (
            {"steps": 0, "workers": -1},
            ["steps = 0: must lie in 1 to 1,000,000,000", "workers = -1: must lie in 0 to 256"],
        ),
        ({"steps": True}, ["steps = True: must be an integer"]),
        ({"steps": 1e20}, ["steps = 1e+20: must be an integer"]),
        ({"steps": "3"}, ["steps = '3': must be an integer"]),
        ({"steps": None}, ["steps = None: must be an integer"]),
        ({"sides": [1, [2, 10**20], 10**20]}, ["sides = 100000000000000000000: must lie in 1 to 512"]),
        ({"multipliers": (1, 65, 66)}, ["multipliers = 65: must lie in 1 to 64"]),
        ({"base_lr": float("inf")}, ["base_lr = inf: must be a finite number"]),
        ({"base_lr": "1"}, ["base_lr = '1': must be a number"]),
        ({"betas": (0.9, float("nan"))}, ["betas = nan: must be a finite number"]),
        ({"resume": 1, "depth": 3}, ["resume = 1: must be true or false", "depth: no such setting"]),
        ({"steps": 10**9, "sides": [1, (2, 3)], "multipliers": [1, 2], "base_lr": 1e308, "resume": True}, []),
    ],
)
def test_numbers_are_whole_within_bounds_and_finite(values, problems):
    found = []
    try:
        Numbers(**values)
    except ValueError as error:
        found = str(error).splitlines()
    assert found == problems


def test_settings_inside_others_are_named_after_them():
    @settings
    class Run:
        numbers: Numbers = field(default_factory=Numbers)
        name: str

    with pytest.raises(ValueError) as caught:
        Run(numbers={"steps": 0, "depth": 1})
    assert str(caught.value).splitlines() == [
        "numbers.steps = 0: must lie in 1 to 1,000,000,000",
        "numbers.depth: no such setting",
        "name: is missing",
    ]
    assert Run(numbers={"steps": 5}, name="a").numbers == Numbers(steps=5)
    with pytest.raises(ValueError, match="steps = 0"):
        replace(Numbers(), steps=0)


@pytest.mark.parametrize("kind", [TokenizerTraining, GeneratorTraining, TokenizerConfig, GeneratorConfig])
def test_no_float_of_a_config_is_infinite(kind):
    own = {"data": "d", "out": "o", "tokenizer": "t"}
    given = {field: text for field, text in own.items() if field in kind.__dataclass_fields__}
    floats = [name for name, of in typing.get_type_hints(kind).items() if of in (float, float | None)]
    with pytest.raises(ValueError) as caught:
        kind(**given, **dict.fromkeys(floats, math.inf))
    assert sorted(str(caught.value).splitlines()) == [
        f"{name} = inf: must be a finite number" for name in sorted(floats)
    ]


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"depth": 10**20}, "depth = 100000000000000000000: must lie in 1 to 200"),
        ({"depth": -1}, "depth = -1: must lie"),
        ({"depth": 200, "width": 10**12, "attention": ["intra"] * 200}, "width = 1000000000000: must"),
        ({"sides": list(range(1, 66))}, f"sides = {list(range(1, 66))}: sides has 65 scales: give at"),
    ],
)
def test_absurd_models_are_refused_without_being_built(values, start):
    with pytest.raises(ValueError) as caught:
        GeneratorConfig(**values)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(start)


@pytest.mark.parametrize(
    ("what", "options", "told"),
    [
        # 200 blocks of width 4096 have 200 * (4 + 8 + 6 + ...) * 4096**2 parameters, some 70 billion.
        ("generator", ["--model.depth", "200", "--model.width", "4096"], "M parameters in training and 32 images"),
        ("generator", ["--batch-size", "1000000"], "M parameters in training and 1,000,000 images at once"),
        ("generator", ["--batch-size", "1000000", "--accumulate", "10"], "and 100,000 images at once"),
        ("tokenizer", ["--discriminator-channels", "1024", "--batch-size", "1000000"], "and 1,000,000 images at once"),
        ("tokenizer", ["--model.channels", "4096", "--model.multipliers", "[16,32,64]"], "M parameters in training"),
        ("tokenizer", ["--model.vocab_size", "1048576", "--model.latent_channels", "4096"], "M parameters"),
    ],
)  # fmt: skip
def test_training_beyond_memory_is_refused_before_data_are_read(refused, tmp_path, monkeypatch, what, options, told):
    monkeypatch.chdir(tmp_path)
    memory = namedtuple("Memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(4e9))
    (line,) = refused(*TRAIN[what], *options)
    assert line.startswith("mvar: model, batch_size: ")
    assert told in line
    assert line.endswith("4.0 GB of memory are free; give a smaller model or batch_size, or a larger accumulate")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("sample", ["--npz", "new/a.npz", "--batch-size", "1000000", "--per-class", "9000"],
            "batch_size = 18,000: so many images at once"),
        ("sample", ["--npz", "new/a.npz", "--per-class", "1000000"], "per_class: 2,000,000 images of 8x8 pixels"),
        ("sample-best", ["--npz", "new/a.npz", "--of", "100000"], "of, keep, labels: 100,001 images of"),
        ("sample-set", ["--npz", "new/a.npz", "--per-class", "1000000"],
            "per_class: 2,000,000 images of 2 classes, listed by number,"),
        ("vary", ["--out", "new/a.png", "--from-scale", "1", "--n", "100", "--image", "photo.png"], "n: 100 images of"),
        ("edit", ["--out-dir", "new", "--box", "0,0,4,4", "--n", "100", "--image", "photo.png"], "n: 100 images of"),
    ],
)  # fmt: skip
def test_what_cannot_fit_is_not_drawn(refused, bundle, tmp_path, monkeypatch, command, options, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("photo.png")
    loaded, memory = load(bundle, "cpu"), namedtuple("Memory", "available")
    monkeypatch.setattr("mvar.model.load", lambda *_: loaded)
    free = 70_000 if "--n" in options else 10_000_000
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(free))
    (line,) = refused(command, "--model", bundle, *options)
    assert line.startswith(f"mvar: {message}")
    assert " MB of memory are free; " in line
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]


def test_a_batch_has_no_more_images_than_there_are(bundle):
    model = load(bundle, "cpu")
    assert model.fitting_batch_size(1_000_000, images=3) == 1_000_000
    assert len(model.sample([0, 1], batch_size=np.int64(1_000_000)).pixels) == 2


def test_an_official_file_cannot_claim_more_than_memory_holds(load_parity):
    """A tensor that repeats one number takes no memory until it is copied; numbers in names are no sizes."""
    state = dict(load_parity("var").tokenizer)
    state |= {"decoder.conv_in.weight": torch.zeros(1).expand(10**7, 8, 3, 3)}
    with pytest.raises(ValueError, match=r"decoder\.conv_in\.weight is "):
        official.read_tokenizer(state)
    state = dict(load_parity("var").generator) | {"blocks.999999999.ffn.fc1.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"blocks\.2\.ffn\.fc1\.weight is absent"):
        official.read_generator(state)
