import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar.features.judge import Judge
from mvar.model import Model, load
from mvar.studies import measuring, sweep_figure
from mvar.studies.grid import TRIED
from mvar.studies.page import fill, markers
from mvar.studies.sweep import best
from recipes.fashion_mnist import FashionMnist
from recipes.icons import Icons
from recipes.shared import run_cli

RECIPE = FashionMnist()
DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "models" / "fashion-mnist.md"
SWEEP = DOCS / "images" / "fashion-mnist" / "sweep.json"


def write_run(folder, records):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"batch_size": 32}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def data(few_images, tmp_path_factory):
    """Ten images of each class and split."""
    return Path(few_images(tmp_path_factory.mktemp("few"), 10))


@pytest.fixture(scope="module")
def originals(fashion_arrays):
    """The validation images of `data`, uint8 (10 classes, 10 images, 28, 28)."""
    return fashion_arrays["val"][:, :10]


@pytest.fixture(scope="module")
def work(tmp_path_factory, data, random_model):
    """A tiny random model, an untrained judge, and the metrics of two runs."""
    root = tmp_path_factory.mktemp("recipe")
    classes = sorted(path.name for path in (data / "val").iterdir())
    folders = {"tokenizer": "t", "fine_tuned_from": "g0"}
    model = random_model(classes, [1, 2, 3, 4], {"data": "my-folder", "steps": 150, **folders})
    for name in ("model", "g"):
        model.save(root / name)
    Model(model.tokenizer, None, classes).save(root / "t")
    Judge(10, channels=1).eval().save(root / "judge.safetensors")
    steps = [{"step": s, "loss": 1 / s, "images_per_second": 64.0} for s in (50, 100, 150)]
    scales = [[0.5, 0.4, 0.3, 0.2]]
    write_run(root / "t", [*steps, {"step": 150, "val_psnr": 20.0, "used": scales[0], "perplexity": scales[0]}])
    values = {"val_loss": 3.0, "val_loss_scales": scales[0], "val_accuracy_scales": scales[0]}
    write_run(root / "g", [*steps, {"step": 150, **values}])
    return root


@pytest.fixture(scope="module")
def measured(work, data):
    """The folder of the report and the figures, and what `measure` returned."""
    out = work / "images" / "fashion-mnist"
    report = RECIPE.measure(
        str(work / "model"),
        str(data),
        str(work / "judge.safetensors"),
        str(out),
        samples_per_class=2,
        sheet=str(work / "images" / "fashion-mnist-samples.png"),
        tokenizer_run=str(work / "t"),
        generator_run=str(work / "g"),
    )
    return out, report


def test_report_holds_what_each_part_says_by_itself(work, measured, originals):
    out, report = measured
    written = json.loads((out / "report.json").read_text())
    assert written.keys() == report.keys()
    assert report["training"]["generator"] == {"steps": 150, "batch_size": 32, "minutes": 150 * 32 / 64 / 60}

    # PSNR computed independently: plain arrays and Pillow, no code of the recipe.
    model = load(work / "model")
    flat = originals.reshape(-1, 28, 28)
    framed = [Image.fromarray(np.pad(image, 2)).convert("RGB") for image in flat]
    small = [np.asarray(image.resize((8, 8), Image.Resampling.LANCZOS)) for image in framed]
    pixels = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 255
    values = []
    for image, restored in zip(flat, model.tokenizer.reconstruct(pixels).mean(1).numpy(), strict=True):
        large = np.asarray(Image.fromarray(restored).resize((32, 32), Image.Resampling.BICUBIC))
        error = (255 * large[2:-2, 2:-2]).clip(0, 255).round() - image
        values.append(10 * np.log10(255**2 / np.square(error).mean()))
    assert report["tokenizer"]["images"] == len(values) == 100
    assert report["tokenizer"]["psnr"] == pytest.approx(np.mean(values), abs=0.002)

    samples = report["samples"]
    out = model.sample([c for c in range(10) for _ in range(2)])
    with torch.no_grad():
        grey = RECIPE.form.of(out.pixels)
        seen = Judge.load(work / "judge.safetensors")(grey.expand(-1, 3, -1, -1) / 255).argmax(1).tolist()
    assert samples["accuracy"] == pytest.approx(np.mean([c == i // 2 for i, c in enumerate(seen)]))
    assert samples["real"]["spread_ratio"] == pytest.approx(1)
    assert samples["seconds_per_image"] > 0


def test_every_figure_of_the_page_is_drawn(work, measured):
    sweep_figure.plot(json.loads(SWEEP.read_text()), measured[0] / "sweep.png")
    linked = re.findall(r"\]\(\.\./images/(.*?)\)", PAGE.read_text(encoding="utf-8"))
    assert len(linked) == len(set(linked)) == 9
    for name in linked:
        assert (work / "images" / name).stat().st_size > 1000


def test_page_gets_the_results_between_its_markers(measured, tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    copy = tmp_path / "page.md"
    copy.write_text(text, encoding="utf-8")
    arguments = ["page", "--report", str(measured[0] / "report.json"), "--out", str(copy)]
    for _ in range(2):  # filling again changes nothing
        run_cli("recipe", *RECIPE.commands(), argv=arguments)
        filled = copy.read_text(encoding="utf-8")
        assert filled.startswith(text.split(markers()[0])[0])
        assert filled.endswith(text.split(markers()[1])[1])
        assert filled.count("| Ankle-boot |") == 1
    assert f"**{measured[1]['tokenizer']['psnr']:.2f} dB**" in filled
    copy.write_text("no markers")
    with pytest.raises(ValueError, match="needs the lines '<!-- results: begin"):
        fill(copy, "text")


def test_chosen_settings_become_the_packages_defaults(work, tmp_path):
    recipe = FashionMnist()
    chosen = {"guidance": 1.25, "temperature": [2.0, 1.5, 1.0, 0.5], "top_k": 7, "top_p": 0.9}
    sweep, out = tmp_path / "sweep.json", tmp_path / "fashion-mnist"
    sweep.write_text(json.dumps({"chosen": {**chosen, "accuracy": 0.9, "distance": 100.0}}))
    recipe.package(str(work / "model"), str(sweep), str(out), str(work / "t"))
    packaged = load(out)
    assert {name: getattr(packaged.defaults, name) for name in chosen} == chosen
    assert packaged.provenance == {
        "steps": 150,
        "tokenizer_steps": 150,
        "data": recipe.data,
        "recipe": "recipes.fashion_mnist",
        "licence": "Apache-2.0",
    }
    again = tmp_path / "again" / out.name
    recipe.package(str(out), str(sweep), str(again), str(work / "t"))  # bfloat16 is of the same run
    for file in out.iterdir():  # the packaged model itself can get other defaults
        assert (again / file.name).read_bytes() == file.read_bytes()
    size = sum(file.stat().st_size for file in out.iterdir())
    recipe.most_bytes = size - 1
    with pytest.raises(ValueError, match=f"takes {size} bytes, at most {size - 1}"):
        recipe.package(str(work / "model"), str(sweep), str(out), str(work / "t"))


@pytest.mark.parametrize("recipe", [FashionMnist, Icons])
def test_the_defaults_that_ship_are_those_that_the_sweep_chose(recipe):
    report = json.loads((DOCS / "images" / recipe.name / "sweep.json").read_text())
    wanted, settings = json.loads(json.dumps(asdict(recipe.grid))), report["settings"]
    assert {name: settings[name] for name in wanted} == wanted
    assert report["chosen"] == best(report["trials"], recipe.grid)
    defaults = asdict(load(recipe.name).defaults)
    assert {name: report["chosen"][name] for name in TRIED} == {name: defaults[name] for name in TRIED}


def test_originals_are_the_files_own_pixels_with_the_folders_labels(data, originals):
    images, labels, classes = measuring.originals(str(data), "val", RECIPE.form)
    assert np.array_equal(images[:, 0].numpy().reshape(10, 10, 28, 28), originals)
    assert labels.tolist() == [c for c in range(10) for _ in range(10)]
    assert classes == sorted(classes)
    fewer = measuring.originals(str(data), "val", RECIPE.form, classes, per_class=5)
    assert torch.equal(fewer.images_Nchw, images[::2])
    pixels = torch.tensor([10.4, 20.0, 33.0]).div(255).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert torch.equal(RECIPE.form.of(pixels), torch.full((1, 1, 28, 28), 21, dtype=torch.uint8))  # 63.4 / 3, rounded


@pytest.mark.parametrize("network", ["tokenizer", "generator"])
def test_runs_of_other_weights_are_refused(network, work, data, tmp_path):
    run = shutil.copytree(work / "g", tmp_path / "run")
    other = load(run)
    with torch.no_grad():
        next(getattr(other, network).parameters())[0] += 0.1
    other.save(run)
    places = [str(path) for path in (work / "model", data, work / "judge.safetensors", tmp_path)]
    refused = rf"^{network}_run = '.*run': its {network} is not the model's"
    with pytest.raises(ValueError, match=refused):
        RECIPE.measure(*places, **{f"{network}_run": str(run)})
    if network == "tokenizer":
        chosen = {"guidance": 1, "temperature": 1, "top_k": 0, "top_p": 1}
        (tmp_path / "sweep.json").write_text(json.dumps({"chosen": chosen}))
        with pytest.raises(ValueError, match=refused):
            RECIPE.package(str(work / "model"), str(tmp_path / "sweep.json"), str(tmp_path / "out"), str(run))
        assert not (tmp_path / "out").exists()


def test_mistakes_are_named(work, data, tmp_path, capsys):
    model, data, judge = str(work / "model"), str(data), str(work / "judge.safetensors")
    with pytest.raises(ValueError, match=r"tokenizer_run = '.*': cannot be read"):
        RECIPE.measure(model, data, judge, str(tmp_path), tokenizer_run=str(tmp_path))
    with pytest.raises(ValueError, match=r"data = '.*': val/ has classes Ankle-boot, .*, expected Boot, Hat"):
        measuring.originals(data, "val", RECIPE.form, ["Boot", "Hat"])
    package = ["package", "--model", str(work / "t"), "--sweep", "sweep.json", "--out", "bundle"]
    for argv, said in (
        (package, "mvar: model = .*a tokenizer without a generator; give the generator's run"),
        (["judge", "--data", data, "--out", "judge", "--sede", "1"], "recipe: .*--sede"),
    ):
        with pytest.raises(SystemExit, match="2"):
            run_cli("recipe", *RECIPE.commands(), argv=argv)
        (line,) = capsys.readouterr().err.splitlines()
        assert re.match(said, line)
