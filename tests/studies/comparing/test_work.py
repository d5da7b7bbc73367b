"""Studies at toy size, from their data to the page: every study, each run once, resumed and refused."""

import json
import pickle
from collections import Counter
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from mvar.bench.measuring import take_turns
from mvar.bench.training import Network
from mvar.generator.config import GeneratorConfig
from mvar.studies import distance
from mvar.studies.comparing import data, real, records, report, timing, work
from mvar.studies.comparing.place import Place
from mvar.studies.comparing.plan import FASHION, M_VAR, SCALES, VAR, Run, Scale
from mvar.studies.comparing.work import Work
from mvar.training.generator.task import GeneratorTask
from mvar.training.stopping import Stopped

NAMES = ("width_depth", "mixers", "replace", "order", "scan", "scaling")
STUDIES = {name: import_module(f"mvar.studies.paper.{name}") for name in NAMES}
DRAWN = ("mixers.png", "scaling.png")  # the two kinds of figures
MIXERS = STUDIES["mixers"].STUDY


@pytest.fixture(scope="module")
def toy(bundle) -> Scale:
    """Generators that train for two steps."""
    fashion = replace(
        FASHION, command=None, most={}, tokenizer=bundle, sides=(1, 2, 4), per_class=2, seeds=2, name="excerpt"
    )
    return Scale(
        name="toy",
        model=GeneratorConfig(depth=2, width=128, heads=4),
        training={**SCALES["small"].training, "batch_size": 4, "val_images": 8, "validate_every": 1000},
        steps=2,
        rates=(1e-3, 1e-2),
        data=(fashion,),
        sizes=((1, 32), (2, 32), (3, 64)),
    )


@pytest.fixture(scope="module")
def scales(toy) -> dict[str, Scale]:
    """The scale of each study: all but one do without a choice of rates and without equal minutes, to be quick."""
    short = replace(toy, name="short", rates=(1e-2,), equal_minutes=False)
    return {**dict.fromkeys(NAMES, short), "mixers": toy}


def some_turns(cases, rounds):
    """Seconds of a few cases, and one second for all others."""
    return {name: [1.0] for name in cases} | take_turns(dict([*cases.items()][:4]), 1, warm_up=0)


@pytest.fixture(scope="module")
def made(scales, fashion_excerpt, tmp_path_factory):
    """All studies, carried out with one seed by one process; and how often each run was trained."""
    trained: Counter[str] = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "take_turns", some_turns)
        patch.setattr(timing, "IMAGES", 1)
        patch.setattr(timing, "_ratio", lambda four: 0.5)
        patch.setattr(timing, "_check", lambda ratios: None)
        patch.setattr(timing, "count", lambda config, images: Network(config.depth * config.width**2, config.depth))
        patch.setattr(real, "REFERENCE", 60)
        patch.setattr(STUDIES["replace"], "QUARTERS", (2,))
        patch.setattr(STUDIES["scan"], "SIZES", (16,))
        patch.setattr(report, "can_plot", lambda file: file.endswith(DRAWN))
        patch.setattr(distance, "bootstrap", partial(distance.bootstrap, rounds=2))
        patch.setattr(GeneratorTask, "preview", lambda self, path: None)  # a quarter of so short a run

        def counted(run: Run, *rest: object) -> dict[str, object]:
            trained[run.name] += 1
            return carried_out(run, *rest)

        carried_out = work.carry_out
        patch.setattr(work, "carry_out", counted)
        folder = tmp_path_factory.mktemp("studies")
        works = {
            name: Work(folder / "work", folder / "reports" / name, images=str(fashion_excerpt))
            for name in {scale.name for scale in scales.values()}
        }
        for name, module in STUDIES.items():
            works[scales[name].name].carry_out(module.STUDY, scales[name], seeds=1)
        yield works["toy"], trained


def test_every_study_is_made_once_and_shown_on_its_page(scales, made, tmp_path):
    done, trained = made
    assert set(trained.values()) == {1}  # VAR and M-VAR belong to most studies
    for name, module in STUDIES.items():
        scale, path = scales[name], tmp_path / "page.md"
        report.write_page(path, done.reports.parent, [module], scale, seeds=1)
        page = path.read_text()
        assert "not complete" not in page
        for variant in module.STUDY.variants(scale.model, scale):
            assert f"| {variant} |" in page
        assert f"torchrun --nproc-per-node 2 -m mvar study run {module.STUDY.name}" in page
    assert {path.name for path in done.reports.parent.rglob("*.png")} == {*DRAWN}
    report.write_page(tmp_path / "page.md", tmp_path, [STUDIES["mixers"]], scales["mixers"])
    assert "not complete at scale toy" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("device", "spread", "timed"), [("cpu", False, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_only_what_trains_on_one_cpu_is_timed(toy, made, monkeypatch, device, spread, timed):
    done, _ = made
    asked = []
    monkeypatch.setattr(work, "find_device", lambda name: torch.device(device))
    assert timing.is_complete(toy.model, toy, done.reports, timed=True)
    with pytest.raises(ValueError, match=r"has times of a CPU, unlike runs here; give --device cpu, or give other"):
        timing.is_complete(toy.model, toy, done.reports, timed=False)  # a CPU's times mean nothing on a GPU
    monkeypatch.setattr(timing, "is_complete", lambda *_: True)
    monkeypatch.setattr(timing, "measure", lambda *rest: asked.append(rest[-1]))
    done._times([toy.model], replace(toy, spread=spread))
    assert asked == [timed]


def test_a_run_is_the_same_as_one_of_its_length(toy, made, tmp_path):
    """Marks are snapshots: a later one changes nothing about the earlier ones."""
    done, _ = made
    (longer,) = records.runs(MIXERS, MIXERS.variants(toy.model, toy)[VAR], toy, toy.data[0], done.reports, 1)
    marks = records.read(longer, done.reports)["marks"]
    assert [mark["steps"] for mark in marks] == list(longer.marks)
    assert len(marks) == 2
    alone = replace(longer, marks=longer.marks[:1])
    again = replace(done, reports=tmp_path)
    again._make(alone)
    assert records.read(alone, tmp_path)["marks"] == marks[:1]


def test_processes_divide_the_runs(toy, made, tmp_path, fashion_excerpt):
    done, trained = made
    others = [Work(done.folder, tmp_path / "reports", Place(rank, 2), str(fashion_excerpt)) for rank in (1, 0)]
    for path in done.reports.glob("*.json"):
        if "bits_per_token" in path.read_text() and json.loads(path.read_text())["config"]["sampled"]:
            continue  # all is known but the long runs
        (tmp_path / "reports").mkdir(exist_ok=True)
        (tmp_path / "reports" / path.name).write_bytes(path.read_bytes())
    before = Counter(trained)
    others[0].carry_out(MIXERS, toy, seeds=1)
    half = sum((trained - before).values())
    others[1].carry_out(MIXERS, toy, seeds=1)
    assert (half, sum((trained - before).values())) == (2, 4)
    assert records.table(MIXERS, toy, toy.data[0], tmp_path / "reports", 1)


def test_a_second_job_in_a_folder_is_refused_at_its_start(toy, made, fashion_excerpt):
    done, trained = made
    before = sum(trained.values())
    for own in done.trained(MIXERS, toy, [VAR]):  # the lock is held while the caller works
        with pytest.raises(ValueError, match=r"another job runs studies in this folder; wait for it, or stop it"):
            replace(done, reports=done.reports / "other").carry_out(MIXERS, toy)
        assert own[0] == VAR
    assert sum(trained.values()) == before
    done.carry_out(MIXERS, toy, seeds=1)


SHARE = """
import sys, time
from pathlib import Path
from mvar.studies.comparing.place import Place

place, folder = Place.of_torchrun("cpu"), Path(sys.argv[1])
for i in place.share(5):
    end = time.monotonic() + 60
    while i == 0 and len(list(folder.glob("*.made"))) < 4:  # the longest piece
        assert time.monotonic() < end
        time.sleep(0.01)
    (folder / f"{i}.made").write_text(str(place.rank))
"""


def test_a_process_that_is_done_takes_what_another_has_not_begun(tmp_path, processes):
    processes.Ranks(2, SHARE, [tmp_path], tmp_path).finish()
    made = {path.stem: path.read_text() for path in tmp_path.glob("*.made")}
    assert sorted(made) == ["0", "1", "2", "3", "4"]
    assert {made[name] for name in "1234"} == {"1" if made["0"] == "0" else "0"}


def test_a_process_whose_torchrun_was_killed_says_so(monkeypatch):
    class Gone:
        def add(self, *_: object) -> int:
            raise dist.DistNetworkError("Failed to recv, got 0 bytes")

    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(Place, "_store", Gone())
    with pytest.raises(Stopped, match=r"torchrun has ended; run the same command again to continue"):
        next(Place(1, 2).share(5))


def test_records_of_other_configurations_are_refused(toy, made, tmp_path):
    done, _ = made
    models = MIXERS.variants(toy.model, toy)
    copies = {path.name: path.read_text() for path in done.reports.glob("*.json")}
    (run,) = records.runs(MIXERS, models[VAR], toy, toy.data[0], done.reports, 1)
    name = records.path_of(run, done.reports).name

    def refuse(change, match: str) -> None:
        folder = tmp_path / match.replace(" ", "-")
        folder.mkdir()
        for file, text in copies.items():
            (folder / file).write_text(text)
        record = json.loads(copies[name])
        change(record)
        (folder / name).write_text(json.dumps(record))
        with pytest.raises(ValueError, match=match):
            records.table(MIXERS, toy, toy.data[0], folder, 1)

    refuse(lambda record: record["config"].update(seed=7), "is not of the configuration in its name")
    refuse(lambda record: record["protocol"].update(samples=1), "measured in other features, or with other")
    refuse(lambda record: record.update(tokenizer="of other weights"), "another tokenizer")
    refuse(lambda record: record.update(images="others"), "of other images")
    refuse(lambda record: record.pop("tokenizer"), "is not a whole record; delete it and run the study again")
    refuse(lambda record: record["marks"][1].pop("accuracy"), "is not a whole record")
    refuse(lambda record: record["marks"].pop(), "is not a whole")
    other = timing.path_of(models[M_VAR], toy, done.reports)
    (tmp_path / other.name).write_text(json.dumps(json.loads(other.read_text()) | {"config": {}}))
    with pytest.raises(ValueError, match="is not of the configuration in its name"):
        timing.read(models[M_VAR], toy, tmp_path)


@pytest.mark.parametrize("what", ["tokenizer", "images"])
def test_records_of_other_data_are_refused_before_any_training(toy, made, tmp_path, fashion_excerpt, what):
    done, trained = made
    before = sum(trained.values())
    (short, *_) = records.trials(toy.model, toy, done.reports)
    record = json.loads(records.path_of(short, done.reports).read_text())
    for name, text in (("kept", record), ("other", record | {what: "other"})):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{short.name}.json").write_text(json.dumps(text))
    Work(done.folder, tmp_path / "kept", images=str(fashion_excerpt))._prepare(MIXERS, toy)
    with pytest.raises(ValueError, match=rf"{short.name}\.json: not of the {what} with which"):
        Work(done.folder, tmp_path / "other", images=str(fashion_excerpt)).carry_out(MIXERS, toy)
    assert sum(trained.values()) == before


def test_records_measured_in_other_features_are_refused(toy, made):
    done, _ = made
    with pytest.raises(ValueError, match=r"not measured by FID"):
        replace(done, extractor=SimpleNamespace(distance="FID"))._prepare(MIXERS, toy)


def test_a_run_that_was_stopped_between_marks_goes_on_and_keeps_its_record(toy, made):
    done, trained = made
    (run,) = records.runs(MIXERS, MIXERS.variants(toy.model, toy)[VAR], toy, toy.data[0], done.reports, 1)
    marks, path, before = done.folder_of(run) / "marks.json", records.path_of(run, done.reports), trained[run.name]
    kept, both = path.read_text(), marks.read_text()
    first = json.dumps(json.loads(both) | {"marks": json.loads(both)["marks"][:1]})
    for text, times in ((both, before), (first, before + 1)):
        marks.write_text(text)
        path.write_text(kept + " ")  # by another machine, say
        ((_, found, bundle, _),) = done.trained(MIXERS, toy, [VAR])
        assert (found, bundle, trained[run.name]) == (run, marks.parent, times)
        assert (path.read_text(), json.loads(marks.read_text())) == (kept + " ", json.loads(both))
    path.write_text(kept)
    trained[run.name] = before
    marks.write_text(json.dumps(json.loads(both) | {"contents": {"tokenizer": "of other weights"}}))
    with pytest.raises(ValueError, match=r"was trained with another tokenizer or on other images; delete it"):
        next(done.trained(MIXERS, toy, [VAR]))
    marks.write_text(both)


SPREAD = """
import pickle, sys
from pathlib import Path
from mvar.studies.comparing.place import Place
from mvar.studies.comparing.work import Work
from mvar.studies.paper import mixers
from dataclasses import replace

scale, folder, images = pickle.loads(Path(sys.argv[1]).read_bytes())
work = Work(folder / "work", folder / "reports", Place.of_torchrun("cpu"), images)
work.carry_out(replace(mixers.STUDY, losses_only=True), scale)
"""


def test_processes_that_share_each_run_train_one_after_another_and_go_on(toy, tmp_path, fashion_excerpt, processes):
    scale = replace(toy, rates=(1e-2,), spread=True, data=(replace(toy.data[0], seeds=1),))
    (tmp_path / "toy.pickle").write_bytes(pickle.dumps((scale, tmp_path, str(fashion_excerpt))))
    losses = replace(MIXERS, losses_only=True)
    for missing in (4, 1):
        ranks = processes.Ranks(2, SPREAD, [tmp_path / "toy.pickle"], tmp_path)
        assert ranks.wait() == [0, 0], ranks.errors()
        assert "mixers: 4 runs to compare; existing results are kept" in ranks.errors()
        assert f"{missing} of 4 are missing" in ranks.errors()
        rows = records.table(losses, scale, scale.data[0], tmp_path / "reports")
        assert len(rows) == 4
        (run,) = records.runs(losses, toy.model, scale, scale.data[0], tmp_path / "reports")
        records.path_of(run, tmp_path / "reports").unlink()


def test_a_tokenizer_that_was_not_written_whole_is_written_again(toy, made, tmp_path, fashion_excerpt):
    prepared = data.prepare(toy.data[0], tmp_path, Place(), str(fashion_excerpt))
    config = Path(prepared.tokenizer) / "config.json"
    config.unlink()
    assert data.prepare(toy.data[0], tmp_path, Place(), str(fashion_excerpt)) == prepared
    assert config.exists()
    with pytest.raises(ValueError, match=r"data = 'nowhere': is no folder"):
        data.prepare(toy.data[0], tmp_path, Place(), "nowhere")


def test_prepared_data_of_another_tokenizer_or_set_is_refused(toy, made, tmp_path, fashion_excerpt):
    done, _ = made
    folder = done.folder / "data" / toy.data[0].name
    with pytest.raises(ValueError, match=r"sides = .* was started with \[1, 2, 4\]"):
        data.prepare(replace(toy.data[0], sides=(1, 2, 3, 4)), folder, Place(), str(fashion_excerpt))
    facts = (folder / "data.json").read_text()
    (tmp_path / "tokens").mkdir()
    with pytest.raises(ValueError, match=r"no data\.json says how it was made"):
        data.prepare(toy.data[0], tmp_path, Place(), str(fashion_excerpt))
    other = json.dumps(json.loads(facts) | {"tokenizer_weights": "others"})
    (tmp_path / "data.json").write_text(other)
    with pytest.raises(ValueError, match="tokenizer_weights"):
        data.prepare(toy.data[0], tmp_path, Place(), str(fashion_excerpt))
