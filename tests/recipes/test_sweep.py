import json
from dataclasses import replace

import pytest
import torch

from mvar.cli import main
from mvar.commands.table import COMMANDS
from mvar.features.judge import Judge
from mvar.model import load
from mvar.studies import measuring
from mvar.studies.grid import Grid
from mvar.studies.measuring import Form
from mvar.studies.sweep import best, set_aside, sweep
from mvar.studies.sweep_figure import front, plot
from recipes.fashion_mnist import FashionMnist

pytestmark = pytest.mark.filterwarnings("ignore:.* are smaller than")
GRID = Grid(
    guidance=[0.0, 2.0],
    temperature=[2.0, 1.0],
    last_temperature=0.5,
    top_k=[5, 3],
    top_p=[0.5],
    least_accuracy=0.0,
    spread_band=(0.0, 9.0),
)
FORM = Form(16)
CLASSES = ("Ankle-boot", "Bag")


@pytest.fixture(scope="module")
def arguments(few_images, random_model, tmp_path_factory):
    """Arguments of a sweep: a tiny model of random weights, an untrained judge, 12 images of each class."""
    root = tmp_path_factory.mktemp("sweep")
    random_model(CLASSES, [1, 2, 4]).save(root / "model")
    for name, classes in (("judge", 2), ("of-three", 3)):
        Judge(classes, channels=1).eval().save(root / f"{name}.safetensors")
    places = {"model": str(root / "model"), "judge": str(root / "judge.safetensors")}
    return {**places, "data": few_images(root / "data", 12, classes=2), "samples_per_class": 4}


@pytest.fixture(scope="module")
def swept(arguments, tmp_path_factory):
    """The folder a sweep wrote into, and the setting it chose."""
    out = tmp_path_factory.mktemp("swept")
    return out, sweep(**arguments, out=str(out), grid=GRID, form=FORM)


def trial(**changes):
    return {"distance": 10.0, "accuracy": 0.9, "spread_ratio": 1.0, **changes}


def report_of(folder):
    return json.loads((folder / "sweep.json").read_text())


def test_guidance_and_temperature_come_first_then_filters_at_the_best_of_them(arguments, swept):
    report = report_of(swept[0])
    trials = report["trials"]
    places = [(t["temperature"][0], t["guidance"], t["top_k"], t["top_p"]) for t in trials]
    assert places[:4] == [(2.0, 0.0, 0, 1.0), (2.0, 2.0, 0, 1.0), (1.0, 0.0, 0, 1.0), (1.0, 2.0, 0, 1.0)]
    at = min(trials[:4], key=lambda t: t["distance"])
    first, strength = at["temperature"][0], at["guidance"]
    assert places[4:] == [(first, strength, 5, 1.0), (first, strength, 3, 1.0), (first, strength, 0, 0.5)]
    assert trials[0]["temperature"] == [2.0, 0.875, 0.5]  # by a parabola: a quarter of the way is left in the middle
    assert len({t["distance"] for t in trials}) == 7
    assert report["chosen"] == min(trials, key=lambda t: t["distance"])
    assert (report["reference"], report["images"]) == (16, 8)
    assert (swept[0] / "sweep.png").stat().st_size > 10_000


def test_a_trial_holds_what_its_own_samples_measure(arguments, swept):
    """Independently computed: samples of plain `sample`, counted and compared here."""
    last = report_of(swept[0])["trials"][-1]
    model = load(arguments["model"])
    settings = {name: last[name] for name in ("guidance", "temperature", "top_k", "top_p")}
    drawn = model.sample([0, 0, 0, 0, 1, 1, 1, 1], index=list(range(8)), seed=1, **settings)
    images = FORM.of(drawn.pixels)
    labels = torch.arange(2).repeat_interleave(4)
    with torch.no_grad():
        seen = Judge.load(arguments["judge"])(images.float() / 255).argmax(1)
    assert last["accuracy"] == pytest.approx(float((seen == labels).float().mean()))
    real, _ = set_aside(measuring.originals(arguments["data"], "train", FORM), 4)
    spreads = [
        torch.stack([torch.pdist(of.flatten(1).double() / 255).mean() for of in sets]).mean()
        for sets in (images.split(4), real.images_Nchw.split(8))
    ]
    assert last["spread_ratio"] == pytest.approx(float(spreads[0] / spreads[1]), abs=1e-4)


def test_real_images_are_set_aside_for_the_floor(arguments, swept):
    real = measuring.originals(arguments["data"], "train", FORM)
    kept, aside = set_aside(real, 3)
    assert aside.labels_N.tolist() == [0, 0, 0, 1, 1, 1]
    rows = [{image.numpy().tobytes() for image in part.images_Nchw} for part in (kept, aside, real)]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == rows[2]
    floor = report_of(swept[0])["real"]
    assert floor["distance"] < min(t["distance"] for t in report_of(swept[0])["trials"])


def test_an_interrupted_sweep_continues_to_the_same_result(arguments, swept, tmp_path, monkeypatch):
    draw, drawn = measuring.draw, []

    def stopped(*asked):
        drawn.append(asked)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(*asked)

    monkeypatch.setattr(measuring, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep(**arguments, out=str(tmp_path), grid=GRID, form=FORM)
    assert report_of(tmp_path)["trials"] == report_of(swept[0])["trials"][:2]
    with pytest.raises(ValueError, match=r"^sweep = '.*': has no chosen guidance; write it with the recipe's sweep"):
        FashionMnist().package(arguments["model"], str(tmp_path / "sweep.json"), str(tmp_path / "bundle"))
    sweep(**arguments, out=str(tmp_path), grid=GRID, form=FORM)
    assert len(drawn) == 3 + 7 - 2
    assert (tmp_path / "sweep.json").read_bytes() == (swept[0] / "sweep.json").read_bytes()


def test_a_sweep_of_other_settings_or_weights_is_refused(arguments, swept, tmp_path, monkeypatch):
    before = (swept[0] / "sweep.json").read_bytes()
    other = load(arguments["model"])
    with torch.no_grad():
        next(other.generator.parameters())[0] += 0.1
    other.save(tmp_path / "other")
    monkeypatch.setattr(measuring, "draw", None)  # nothing is drawn

    def refused(changes, *fields):
        asked = {**arguments, "out": str(swept[0]), "grid": GRID, "form": FORM, **changes}
        with pytest.raises(ValueError, match="give the same settings, or another out") as error:
            sweep(**asked)
        assert [line.split(" = ")[0] for line in str(error.value).splitlines()] == list(fields)

    refused({"grid": replace(GRID, guidance=[0.0, 2.0, 3.0], top_k=[5])}, "guidance", "top_k")
    refused({"grid": replace(GRID, least_accuracy=0.1)}, "least_accuracy")
    refused({"model": str(tmp_path / "other")}, "model")
    refused({"samples_per_class": 3, "seed": 2}, "data", "samples_per_class", "seed")
    refused({"form": Form(12)}, "data", "form.side")
    assert (swept[0] / "sweep.json").read_bytes() == before


def test_best_is_the_nearest_to_real_images_that_is_accurate_and_varied_else_the_most_accurate():
    grid = Grid(least_accuracy=0.93, spread_band=(0.92, 1.09))
    vague = trial(accuracy=0.7)
    near = trial(accuracy=0.94, spread_ratio=0.94, distance=80)
    far = trial(accuracy=0.95, spread_ratio=0.94, distance=90)
    alike = trial(accuracy=0.99, spread_ratio=0.9, distance=20)
    assert best([vague, far, near, alike], grid) is near
    assert best([vague, alike], grid) is alike
    assert best([vague, far, near, alike], replace(grid, spread_band=None)) is alike
    assert best([vague, far, near, alike], Grid()) is vague


def test_the_front_has_no_beaten_point_and_keeps_equal_ones():
    assert front([(3, 1), (2, 2), (2, 1), (1, 3), (1, 3), (0, 3)]) == [3, 4, 1, 0]


def test_the_finest_maps_go_without_guidance(swept, tmp_path):
    grid = replace(GRID, unguided=[0, 2], temperature=[1.0])
    tried = grid.unfiltered(4)
    assert [trial["guidance"] for trial in tried] == [0.0, 2.0, [0.0, 0.6667, 0.0, 0.0]]
    report = report_of(swept[0])
    trials = [{**report["trials"][0], **trial} for trial in tried]
    plot({**report, "trials": trials, "chosen": trials[-1]}, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": "of-three"}, r"^judge = '.*of-three.*': knows 3 classes, the model 2; give another$"),
        ({"samples_per_class": 1}, r"^samples_per_class = 1: must lie in 2 to"),
        (
            {"samples_per_class": 9999},
            r"^samples_per_class = 9999: as many training images are set aside, and 'Ankle-boot' has 12; give",
        ),
        ({"grid": replace(GRID, guidance=[])}, r"^guidance = \[\]: give at least one$"),
        ({"grid": replace(GRID, unguided=[1, 2])}, r"^unguided = 2: give 0 to 1$"),
    ],
)
def test_mistakes_are_named_before_anything_is_drawn(changes, message, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "draw", None)
    if "judge" in changes:
        changes = {"judge": arguments["judge"].replace("judge.", "of-three.")}
    with pytest.raises(ValueError, match=message):
        sweep(**{**arguments, "grid": GRID, "form": FORM, "out": str(tmp_path), **changes})
    assert not list(tmp_path.iterdir())


def test_the_command(arguments, swept, tmp_path, capsys, refused):
    options = ["--guidance", "0,2", "--temperature", "2", "--last-temperature", "0.5", "--top-k", "5", "--top-p", "0.5"]
    places = [f"--{name}={arguments[name]}" for name in ("model", "data", "judge")]
    asked = ["study", "run", "sweep", *places, *options, "--samples-per-class", "4", "--out", str(tmp_path)]
    main(asked)
    assert capsys.readouterr().out.count("FD-EffNetLite0") == 6  # four settings, the chosen one, real images
    settings = report_of(tmp_path)["settings"]  # at the model's own size and with no bound on spread
    assert settings["form"] == {"side": 8, "frame": 0, "grey": False}
    names = ("guidance", "temperature", "top_k", "top_p", "last_temperature", "seed")
    assert [settings[name] for name in names] == [[0, 2], [2], [5], [0.5], 0.5, 1]
    assert settings["model"] == report_of(swept[0])["settings"]["model"]
    lines = refused(*asked, "--least-accuracy", "0.9", "--seed", "2")
    assert [line.split(" = ")[0].removeprefix("mvar: ") for line in lines] == ["least_accuracy", "seed"]


def test_studies_are_listed(capsys):
    main(["study", "list"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [name.removeprefix("study run ") for name in COMMANDS if name.startswith("study run ")]
