import json

from PIL import Image

from mvar.bench import growth
from mvar.cli import main
from mvar.generator.config import PRESETS, GeneratorConfig


def test_the_command_reports_every_kind_at_every_length(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PRESETS, "tiny", GeneratorConfig(depth=3, width=64, num_classes=2, vocab_size=32))
    monkeypatch.setattr(growth, "SCHEDULES", ((1, 2), (1, 2, 4)))
    main(["bench", "growth", "--preset", "tiny", "--rounds", "2", "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["microseconds", "per", "token", "L", "=", "5", "L", "=", "21"]
    assert all("(1.00x)" in line for line in lines[1:])
    report = json.loads((tmp_path / "out" / "growth.json").read_text())
    found = {(row["kind"], row["tokens"]) for row in report["results"]}
    assert found == {(kind, L) for kind in growth.KINDS for L in (5, 21)}
    assert all(row["microseconds"] > 0 for row in report["results"])
    with Image.open(tmp_path / "out" / "growth.png") as chart:
        assert min(chart.size) > 200
