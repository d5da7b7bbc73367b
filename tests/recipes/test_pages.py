"""What the documentation shows between markers is what the committed reports give."""

import json
import re
import shutil
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from mvar import charts
from mvar.commands.study import study_report
from mvar.evaluation.report import number, read
from mvar.model import load
from mvar.sampling.config import SamplingSettings
from mvar.studies.comparing import figures as figures_of_studies
from mvar.studies.page import read_json, rounded
from recipes import collapse, concepts, editing, figures, likelihood, rejection, results, token_cache
from recipes.shared import between

DOCS = Path(__file__).parents[2] / "docs"
# Page and name of the markers: the report's folder, and what makes Markdown of it.
BLOCKS = {
    ("models/fashion-mnist.md", "results"): ("fashion-mnist", figures.results),
    ("models/icons.md", "results"): ("icons", concepts.results),
    ("likelihood.md", "results"): ("likelihood", likelihood.table),
    ("editing.md", "results"): ("editing", editing.table),
    ("tokens.md", "results"): ("tokens", token_cache.table),
    ("collapse.md", "fashion-mnist"): ("collapse/fashion-mnist", collapse.table),
    ("collapse.md", "emoji"): ("collapse/emoji", collapse.table),
    ("rejection.md", "fashion-mnist"): ("rejection/fashion-mnist", rejection.table),
}
HALVED = "results/fashion-mnist/samples-bfloat16"
TIMED = ("performance/evaluate-10000", "performance/evaluate-50000")
# Without a report of their own: counts of a data set, what test_memory.py has, the results of all
# models, those of studies, and the load of a server.
OTHERS = {("data.md", "results"), ("cluster.md", "results"), ("results.md", "results"), ("studies.md", "studies")} | {
    ("serving.md", "serving")
}
# Reports of samples that were drawn with the settings of a packaged model, and of which.
DRAWN = {
    folder.format(model): model for model in results.MODELS for folder in ("{}", "results/{}/samples")
} | dict.fromkeys(("rejection/fashion-mnist", HALVED, TIMED[0]), "fashion-mnist")
SETTINGS = {field.name for field in fields(SamplingSettings)}


@pytest.mark.parametrize(("name", "marker"), BLOCKS)
def test_a_page_shows_its_report(name, marker):
    folder, markdown = BLOCKS[name, marker]
    report = json.loads((DOCS / "images" / folder / "report.json").read_text(encoding="utf-8"))
    assert between(DOCS / name, marker) == markdown(report)


def test_no_generated_block_and_no_report_is_forgotten():
    found = set()
    for path in DOCS.rglob("*.md"):
        for marker in re.findall(r"<!-- (\S+): begin \(generated", path.read_text(encoding="utf-8")):
            found.add((path.relative_to(DOCS).as_posix(), marker))
    assert found == BLOCKS.keys() | OTHERS
    reports = {path.parent.relative_to(DOCS / "images").as_posix() for path in DOCS.rglob("report.json")}
    kinds = (results.SAMPLES, results.RECONSTRUCTIONS)
    evaluated = {f"results/{model}/{kind}" for model in results.MODELS for kind in kinds} | {HALVED, *TIMED}
    assert reports == {folder for folder, _ in BLOCKS.values()} | evaluated


def test_the_results_page_shows_its_reports():
    assert between(DOCS / "results.md") == results.text(results.read_reports(DOCS / "images" / "results"))


def test_the_studies_page_shows_its_records(tmp_path, monkeypatch):
    for module in (charts, figures_of_studies):
        monkeypatch.setattr(module, "save", lambda figure, path: None)  # drawing takes seconds
    shutil.copytree(DOCS / "studies", tmp_path / "studies")
    page = Path(shutil.copy(DOCS / "studies.md", tmp_path))
    study_report(str(tmp_path / "studies"), str(page))
    assert between(page, "studies") == between(DOCS / "studies.md", "studies")


def settings_in(value):
    """All sampling settings that a report has somewhere."""
    if isinstance(value, list):
        return [found for item in value for found in settings_in(item)]
    if not isinstance(value, dict):
        return []
    if value.keys() >= SETTINGS:
        return [{name: value[name] for name in SETTINGS}]
    return settings_in(list(value.values()))


def test_samples_were_drawn_with_the_packages_settings():
    """Otherwise the model has been packaged again, and the report is out of date."""
    packaged = {model: rounded(asdict(load(model).defaults)) for model in results.MODELS}
    found = set()
    for path in DOCS.rglob("report.json"):
        for settings in settings_in(read_json(path, "report")):
            folder = path.parent.relative_to(DOCS / "images").as_posix()
            found.add(folder)
            assert rounded(settings) == packaged[DRAWN[folder]], folder
    assert found == DRAWN.keys()


def test_the_icons_page_quotes_its_reports():
    text = (DOCS / "models" / "icons.md").read_text(encoding="utf-8")
    samples, restored = (
        read(DOCS / "images" / "results" / "icons" / kind) for kind in (results.SAMPLES, results.RECONSTRUCTIONS)
    )
    for row, report in (("1,607 samples, settings of the bundle", samples), ("reconstructions", restored)):
        distance, precision, recall = (report.metrics[name] for name in ("FD-EffNetLite0", "precision", "recall"))
        interval = f"{distance.value:.1f} ({distance.low:.1f} to {distance.high:.1f})"
        assert f"| {row} | {interval} | {precision.value:.3f} | {recall.value:.3f} |" in text


def test_the_evaluation_page_quotes_its_reports():
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    speed = json.loads((DOCS / "images" / "performance" / "features.json").read_text(encoding="utf-8"))
    pairs = zip(speed["results"][::2], speed["results"][1::2], strict=True)  # float32 and bfloat16
    for exact, halved in pairs:
        cells = [f"{exact['pixels']} px", f"{exact['sees']} px"]
        for r in (exact, halved):
            cells += [
                f"{r['images_per_second']:,.{0 if r['images_per_second'] >= 100 else 1}f}",
                f"{r['utilisation']:.0%}",
            ]
        assert " | ".join(cells).replace("%", " %") + " |" in text
    for timed in TIMED:
        report = read(DOCS / "images" / timed)
        told = f"{report.speed['seconds']:.0f} s and {report.speed['peak_bytes'] / 1e9:.1f} GB"
        assert told in text
    exact, halved = (read(DOCS / "images" / name) for name in ("results/fashion-mnist/samples", HALVED))
    (name, value), other = next(iter(exact.metrics.items())), next(iter(halved.metrics.values()))
    assert exact.samples["sha256"] == halved.samples["sha256"]
    half = (value.high - value.low) / 2
    assert f"{number(value.value)} and {number(other.value)}, half the interval of {name} being {half:.1f}" in text
