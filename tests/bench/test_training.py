import json
import multiprocessing

import pytest
from PIL import Image

from mvar.bench import training
from mvar.cli import main
from mvar.generator.config import PRESETS, GeneratorConfig

TINY = GeneratorConfig(depth=1, width=64, num_classes=2, vocab_size=32, latent_channels=8, sides=[1, 2, 3])


@pytest.fixture(autouse=True)
def tiny(monkeypatch, small_machine, processes):
    """A small preset, and processes that are forked from one that has imported torch already."""
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(processes.IMPORTED)
    monkeypatch.setattr(training.multiprocessing, "get_context", lambda method=None: server)


def test_the_command_measures_cases_in_turn(monkeypatch, tmp_path, capsys):
    names, groups = ["tiny", "VAR"], training._groups  # two of five
    monkeypatch.setattr(training, "_groups", lambda *args: groups(*args)[:1])
    main(["bench", "train", "--preset", "tiny", "--steps", "2", "--dtype", "float32", "--out", str(tmp_path / "b")])
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["s", "tokens/s", "images/s"]
    assert [line.split()[0] for line in lines] == names
    report = json.loads((tmp_path / "b" / "train.json").read_text())
    assert report["took_turns"] == [names]
    for result in report["results"]:
        assert len(result["seconds"]) == 2
        assert result["tokens_per_second"] == pytest.approx(14 * result["images_per_second"])
        assert 50e6 < result["peak_bytes"] < 20e9
        rate = result["flop"] / (sum(result["seconds"]) / 2)
        assert result["utilisation"] == pytest.approx(rate / report["matmul_flops"])
    ours, var = report["results"]
    assert ours["ratio"] == pytest.approx(sum(a / b for a, b in zip(ours["seconds"], var["seconds"], strict=True)) / 2)
    assert var["ratio"] == 1
    with Image.open(tmp_path / "b" / "train.png") as chart:
        assert min(chart.size) > 200


def test_cases_have_the_same_loss():
    groups = training._groups("tiny", 2, "float32")
    names = ["tiny", "VAR", "tiny, checkpointing", "VAR, checkpointing", "tiny, full logits"]
    assert [name for group in groups for name in group] == names
    losses = [training.Worker(next(iter(group.values()))).step().loss for group in groups]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_arithmetic_of_a_step_is_that_of_all_products():
    cases, (B, L, C, V, Z) = training._groups("tiny", 3, "float32")[0], (3, 14, 64, 32, 8)
    common = L * C * (4 * C + 8 * C) + (L - 1) * Z * C + L * C * V + 2 * C * C  # products with weights for all
    pairs = 1 * 1 + 4 * 5 + 9 * 14  # of a token and one that it sees
    var = common + 6 * C * C + 2 * pairs * C  # with AdaLN
    assert training.count(cases["VAR"].config, B).flop == 6 * B * var
    E, N, h = 2 * C, 64, 2
    mamba = L * C * (2 * E + 2 * N + h) + L * E * C + 4 * L * (E + 2 * N)
    scan = L * L * (N + E) + L * N * E  # one chunk, which writes its state and has none to read
    assert training.count(TINY, B).flop == 6 * B * (common + 9 * C * C + 2 * (1 + 4**2 + 9**2) * C + mamba + scan)


def test_a_case_that_ends_is_named():
    with training._process(training._groups("tiny", 1, "float32")[0]["tiny"]) as process:
        training._step("tiny", process)
        next(iter(process._processes.values())).kill()
        with pytest.raises(ValueError, match=r"^case 'tiny': its process ended; see above, or free memory"):
            training._step("tiny", process)
