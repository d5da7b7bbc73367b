"""From training runs to a bundle and its documentation page: what the packaged models share.

Settings are chosen on training images only. Only `measure` looks at the validation images, and `page` writes what it
found into docs/models/<name>.md.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvar.checkpoint.bundle import read_bundle
from mvar.data.order import evenly_spaced
from mvar.features.judge import accuracy, train_judge
from mvar.files import writable_folder
from mvar.machine import machine
from mvar.model import Model, load
from mvar.sampling.config import SamplingSettings
from mvar.sampling.export import IMAGE_SUFFIXES, save_image, target
from mvar.sampling.sheet import class_sheet
from mvar.settings import Count, Several, check
from mvar.studies import measuring
from mvar.studies.distance import IMAGES, Distance
from mvar.studies.grid import TRIED, Grid
from mvar.studies.measuring import Form, Labelled
from mvar.studies.page import fill, read_json
from mvar.studies.sweep import sweep
from mvar.training.run.curves import plot_curves
from mvar.training.run.folder import METRICS, SETTINGS
from recipes import figures, measures
from recipes.shared import publish

LOCAL_NAMES = ("tokenizer", "fine_tuned_from")  # provenance entries that are folders of whoever trained

PANELS = {
    "tokenizer": {
        "Pixel error": ["l1", "val_l1"],
        "Perceptual distance": ["perceptual", "val_perceptual"],
        "PSNR of validation images, dB": ["val_psnr"],
        "Discriminator's scores": ["score_real", "score_fake"],
        "Share of the codes used": ["used"],
        "Perplexity of the codes": ["perplexity"],
    },
    "generator": {
        "Loss, nats per token": ["loss", "val_loss"],
        "Validation loss, nats per token": ["val_loss_scales"],
        "Validation accuracy": ["val_accuracy_scales"],
    },
}


class Recipe:
    """A packaged model.

    Attributes:
        name: of the bundle, of its page in docs/models and of its folder in docs/images.
        form: in which images are compared.
        data: what it was trained on, for the bundle's card.
        most_bytes: largest size of the bundle.
        grid: settings that `sweep` tries, and the bounds on accuracy and spread that the chosen one must meet.
        judge_epochs: passes of the judge over the training images.
    """

    name: str
    form: Form
    data: str
    most_bytes: int
    grid: Grid
    judge_epochs: int
    results = staticmethod(figures.results)  # a report as Markdown

    def commands(self) -> list[Callable[..., Any]]:
        """What a user can run."""
        return [self.judge, self.sweep, self.package, self.package_tokenizer, self.measure, self.page]

    def judge(self, data: str, out: str, epochs: int | None = None, seed: int = 0) -> float:
        """Train the judge on the real training images; print and return its accuracy on the test images.

        Args:
            data: folder with train/<class> and val/<class>.
            out: file to write, .safetensors.
            epochs: passes over the training images; those of the recipe by default.
            seed: of initialisation and order.
        """
        return write_classifier(self.form, data, out, self.judge_epochs if epochs is None else epochs, seed)

    def sweep(
        self, model: str, data: str, judge: str, out: str, samples_per_class: int = 100, seed: int = 1
    ) -> dict[str, Any]:
        """Choose the sampling defaults: `mvar study run sweep` with the grid and form of this recipe.

        Args:
            model: run or bundle.
            data: folder with train/<class>.
            judge: file that `judge` wrote.
            out: folder to write into.
            samples_per_class: number of samples for each setting.
            seed: of the samples.
        """
        return sweep(model, data, judge, out, self.grid, self.form, samples_per_class, seed)

    def package(self, model: str, sweep: str, out: str, tokenizer_run: str | None = None) -> Path:
        """Write the bundle that ships: bfloat16 weights, the chosen sampling defaults, and the provenance.

        Args:
            model: run folder of the generator.
            sweep: sweep.json with the chosen setting.
            out: folder of the bundle; its files are replaced.
            tokenizer_run: run folder of the tokenizer, whose number of steps is recorded.

        Raises:
            ValueError: no generator, no chosen setting, a run of another tokenizer, or too large a bundle.
        """
        loaded = measuring.load_with_generator(model, "cpu")
        chosen = read_json(sweep, "sweep").get("chosen", {})
        if missing := [name for name in TRIED if name not in chosen]:
            raise ValueError(f"sweep = {sweep!r}: has no chosen {missing[0]}; write it with the recipe's sweep")
        loaded.defaults = SamplingSettings(**{name: chosen[name] for name in TRIED})
        if tokenizer_run is not None:
            loaded.provenance["tokenizer_steps"] = _run(tokenizer_run, "tokenizer", loaded)["steps"]
        for name in LOCAL_NAMES:
            loaded.provenance.pop(name, None)
        loaded.provenance |= {
            "data": self.data,
            "recipe": f"recipes.{self.name.replace('-', '_')}",
            "licence": "Apache-2.0",
        }
        with tempfile.TemporaryDirectory() as scratch:
            trial = loaded.save(Path(scratch, Path(out).name), "bfloat16")
            size = sum(file.stat().st_size for file in trial.iterdir())
        if size > self.most_bytes:
            raise ValueError(f"model = {model!r}: takes {size} bytes, at most {self.most_bytes}; train a smaller one")
        folder = loaded.save(out, "bfloat16")
        print(f"wrote {folder}: {size / 1e6:.2f} MB")
        return folder

    def package_tokenizer(self, model: str, out: str) -> None:
        """Write a tokenizer alone as a bundle that ships: bfloat16 weights and the provenance.

        Args:
            model: run folder of the tokenizer.
            out: folder of the bundle; its files are replaced.
        """
        loaded = load(model, "cpu")
        made = {"data": self.data, "recipe": f"recipes.{self.name.replace('-', '_')}", "licence": "Apache-2.0"}
        bundle = Model(tokenizer=loaded.tokenizer, provenance={**loaded.provenance, **made})
        print(f"wrote {bundle.save(out, 'bfloat16')}")

    def measure(
        self,
        model: str,
        data: str,
        judge: str,
        out: str,
        samples_per_class: int = 1000,
        seed: int = 0,
        sheet: str | None = None,
        tokenizer_run: str | None = None,
        generator_run: str | None = None,
        device: str | None = None,
    ) -> dict[str, Any]:
        """Measure a model on the test images; writes report.json and figures.

        Args:
            model: packaged name, bundle or run folder.
            data: folder with train/<class> and val/<class>, the test images.
            judge: file that `judge` wrote.
            out: folder to write into.
            samples_per_class: number of samples, drawn with the model's own settings.
            seed: of the samples.
            sheet: file for the sheet of samples; samples.png in `out` by default.
            tokenizer_run: run folder of the tokenizer, for its curves.
            generator_run: run folder of the generator, for its curves.
            device: cpu, cuda, ...; a GPU where there is one by default.

        Raises:
            ValueError: no generator, too few samples, an unusable file or folder, or a run of other weights.
        """
        check("samples_per_class", samples_per_class, Several)
        start = time.perf_counter()
        folder = writable_folder(out, "out")
        sheet_path = target(sheet or folder / "samples.png", IMAGE_SUFFIXES, "sheet")
        loaded = measuring.load_with_generator(model, device)
        critic = measuring.load_judge(judge, loaded.classes)
        given = {"tokenizer": tokenizer_run, "generator": generator_run}
        runs = {name: _run(path, name, loaded) for name, path in given.items() if path is not None}
        test = measuring.originals(data, "val", self.form, loaded.classes)
        real = measuring.originals(data, "train", self.form, loaded.classes, IMAGES // len(test.classes))

        tokenizer, round_trip = measures.tokenizer_report(loaded, self.form, data, test)
        drawn = measuring.draw(loaded, self.form, samples_per_class, seed, loaded.defaults)
        report: dict[str, Any] = {
            "machine": machine(),
            "model": measures.facts(loaded),
            "training": {name: {key: run[key] for key in run if key != "records"} for name, run in runs.items()},
            "tokenizer": tokenizer,
            "distance": _distances(test, real, round_trip.images_Nchw, drawn.images),
            "generator": measures.generator_report(loaded, round_trip.tokens, test.labels_N),
            "samples": {
                **measures.samples_report(critic, drawn, test, round_trip.images_Nchw),
                "seed": seed,
                "settings": asdict(loaded.defaults),
            },
        }
        save_image(measures.reconstruction_sheet(test, round_trip.images_Nchw), folder / "reconstructions.png")
        save_image(class_sheet(list(zip(test.classes, drawn.first, strict=True))), sheet_path)
        save_image(measures.growth(loaded, samples_per_class, seed), folder / "coarse-to-fine.png")
        figures.plot(report, folder)
        for name, run in runs.items():
            plot_curves(run["records"], folder / f"{name}-training.png", PANELS[name], measures.scale_names(loaded))
        report["minutes"] = (time.perf_counter() - start) / 60
        publish(report, folder, self.results(report), None)
        return report

    def page(self, report: str | None = None, out: str | None = None) -> None:
        """Put the results of report.json between the markers of the documentation page.

        Args:
            report: what `measure` wrote; report.json of the model in docs/images by default.
            out: Markdown file with the two markers; the model's page in docs/models by default.
        """
        report, out = report or f"docs/images/{self.name}/report.json", out or f"docs/models/{self.name}.md"
        fill(out, self.results(read_json(report, "report")))
        print(f"wrote {out}")


def write_classifier(form: Form, data: str, out: str, epochs: int, seed: int) -> float:
    """Train a classifier on the training images in a form; print and return its accuracy on the test images.

    Args:
        form: of the images it sees.
        data: folder with train/<class> and val/<class>.
        out: file to write, .safetensors.
        epochs: passes over the training images.
        seed: of initialisation and order.
    """
    check("epochs", epochs, Count)
    path = target(out, (".safetensors",), "out")
    train = measuring.originals(data, "train", form)
    test = measuring.originals(data, "val", form, train.classes)
    start = time.perf_counter()
    judge = train_judge(train.images_Nchw, train.labels_N, num_classes=len(train.classes), epochs=epochs, seed=seed)
    minutes = (time.perf_counter() - start) / 60
    judge.save(path)
    share = accuracy(judge, test.images_Nchw, test.labels_N)
    print(f"wrote {path}: {100 * share:.2f} % of {len(test.labels_N)} test images right, {minutes:.1f} minutes")
    return share


def _distances(test: Labelled, real: Labelled, restored_Nchw: Tensor, samples: Labelled) -> dict[str, Any]:
    """The distances of at most 2,000 images of each kind to all test images."""
    distance = Distance(test.images_Nchw)
    kinds = {"real": real.images_Nchw, "reconstructed": restored_Nchw, "samples": samples.images_Nchw}
    some = {kind: images_Nchw[evenly_spaced(len(images_Nchw), IMAGES)] for kind, images_Nchw in kinds.items()}
    found = {kind: {"images": len(images), "value": distance.of(images)} for kind, images in some.items()}
    return {"reference": len(test.labels_N), **found}


def _run(folder: str, network: str, model: Model) -> dict[str, Any]:
    """The training run of a model's network: steps, batch size, minutes, and the records of its metrics."""
    field = f"{network}_run"
    settings = read_json(Path(folder) / SETTINGS, field)
    records = [json.loads(line) for line in (Path(folder) / METRICS).read_text(encoding="utf-8").splitlines()]
    rate = [record["images_per_second"] for record in records if "images_per_second" in record][-1]
    steps, batch_size = records[-1]["step"], settings["batch_size"]
    if not _is_same(getattr(read_bundle(folder), network), getattr(model, network)):
        raise ValueError(f"{field} = {folder!r}: its {network} is not the model's; give the run that the model is from")
    minutes = steps * batch_size / rate / 60
    return {"steps": steps, "batch_size": batch_size, "minutes": minutes, "records": records}


def _is_same(trained: nn.Module | None, used: nn.Module | None) -> bool:
    """Whether two networks have the same weights in bfloat16, as which models are packaged."""
    if trained is None or used is None:
        return False
    weights, others = trained.state_dict(), used.state_dict()
    return weights.keys() == others.keys() and all(
        torch.equal(weights[name].cpu().bfloat16(), others[name].cpu().bfloat16()) for name in weights
    )
