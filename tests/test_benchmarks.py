"""The checks of a GPU, at toy size on a CPU: the code that runs there runs here."""

import json
import sys

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Report, main, run


@pytest.mark.filterwarnings("ignore")
def test_every_section_runs_at_toy_size_and_is_written(tmp_path):
    report = run(torch.device("cpu"), tmp_path, quick=True, minutes=8)
    assert not report.failed, {name: report.sections[name] for name in report.failed}
    sections = json.loads((tmp_path / "report.json").read_text())
    assert list(sections) == list(report.sections)
    assert sections["parity"]["found"]["cases"] == 5
    assert sections["trainings"]["found"]["resumed"] == "equal"
    drawn = sections["sampling, tiny32 and tiny32"]["found"]["batch 2, guidance 1.5"]["tiny32"]
    assert drawn["recorded"] > 0
    assert drawn["floor"] > 0
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_a_failure_is_recorded_and_the_next_section_goes_on(tmp_path):
    report = Report(tmp_path, 1.0)

    def fails():
        raise RuntimeError("a kernel is wrong")

    report.section("one", fails)
    report.section("two", lambda: {"fine": True})
    assert report.failed == ["one"]
    written = json.loads((tmp_path / "report.json").read_text())
    assert "RuntimeError: a kernel is wrong (test_benchmarks.py:" in written["one"]["found"]
    assert written["two"]["found"] == {"fine": True}
    report.minutes = 0.0
    report.section("three", fails)
    assert report.sections["three"]["found"] == {"left out": "no time"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(gpu, "run", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    expected = "benchmarks.gpu: there is no CUDA device here; --quick --device cpu runs toy sizes on a CPU\n"
    assert capsys.readouterr().err == expected
