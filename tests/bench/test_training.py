import json
from collections import namedtuple

import psutil
import pytest
from PIL import Image

from mvar.bench import training
from mvar.cli import main
from mvar.generator.config import PRESETS, GeneratorConfig

TINY = GeneratorConfig(depth=1, width=64, num_classes=2, vocab_size=32, latent_channels=8, sides=[1, 2, 3])


def test_the_command_measures_cases_in_turn(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    names, whole = ["tiny, checkpointing", "tiny, full logits"], training._cases  # two of four: each imports torch anew
    monkeypatch.setattr(training, "_cases", lambda *args: {name: whole(*args)[name] for name in names})
    main(["bench", "train", "--preset", "tiny", "--steps", "2", "--dtype", "float32", "--out", str(tmp_path / "b")])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:28].strip() for line in lines[1:]] == names
    report = json.loads((tmp_path / "b" / "train.json").read_text())
    assert report["took_turns"]
    for result in report["results"]:
        assert len(result["seconds"]) == 2
        assert result["tokens_per_second"] == pytest.approx(14 * result["images_per_second"])
        assert 50e6 < result["peak_bytes"] < 20e9
    losses = [result["loss"] for result in report["results"]]
    assert losses == pytest.approx([losses[0]] * 2, rel=1e-5), "the cases do the same, each in its way"
    with Image.open(tmp_path / "b" / "train.png") as chart:
        assert min(chart.size) > 200


def test_cases_do_not_run_together_where_memory_is_short(monkeypatch):
    class Fake:
        alive = 0

        def __init__(self, name, settings):
            pass

        def __enter__(self):
            Fake.alive += 1
            assert Fake.alive == 1
            return self

        def __exit__(self, *_):
            Fake.alive -= 1

        def step(self):
            return training.Step(seconds=2.0, peak_bytes=7, loss=1.0)

    memory = namedtuple("Memory", "available")
    monkeypatch.setattr(training, "_Process", Fake)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(12e9))
    results = training.bench("d16", 2, "bfloat16", 1)
    assert [result.name for result in results] == [
        "d16, checkpointing",
        "d16",
        "d16, full logits",
        "VAR, checkpointing",
    ]
    assert [result.parameters for result in results] == [464_157_440] * 3 + [310_283_520]
    assert results[0].tokens_per_second == 680
    assert results[0].state_bytes == 7_426_519_040
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(7e9))
    with pytest.raises(ValueError, match=r"^preset: weights, gradients and Adam alone take 7.4 GB, 7.0 GB are free"):
        training.bench("d16", 2, "bfloat16", 1)


def test_a_case_that_ends_is_named(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    with training._Process("tiny", training._cases("tiny", 1, "float32")["tiny"]) as worker:
        worker._process.kill()
        with pytest.raises(ValueError, match=r"^case 'tiny': its process ended with code -9"):
            worker.step()


def test_bad_numbers_are_refused(refused):
    assert refused("bench", "train", "--preset", "d17")[0].startswith("mvar: preset = 'd17': choose from d12")
    assert refused("bench", "train", "--steps", "0") == ["mvar: steps = 0: must be at least 1"]
