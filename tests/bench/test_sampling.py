import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mvar.bench import cases
from mvar.bench.cases import Subject, rerunning
from mvar.bench.measuring import SEED
from mvar.bench.parts import Phase, Stopwatch
from mvar.cli import main
from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.tokenizer.config import TokenizerConfig


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    shared = {"vocab_size": 32, "latent_channels": 8, "sides": [1, 2, 3, 4]}
    monkeypatch.setitem(PRESETS, "tiny", GeneratorConfig(depth=2, width=64, num_classes=2, **shared))
    tokenizer = TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, **shared)
    monkeypatch.setitem(cases.TOKENIZERS, "tiny", tokenizer)


def test_the_command_reports_parts_scales_and_rivals(small_machine, tmp_path, capsys):
    options = ["--preset", "tiny", "--dtype", "fp32", "--batch", "1,2", "--rounds", "1", "--json"]
    main(["bench", "sample", *options, "--against", "prefix,float32", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    report = json.loads(printed)
    assert printed.strip() == (tmp_path / "out" / "sample.json").read_text().strip()
    assert (report["preset"], report["dtype"], report["batch"]) == ("tiny", "fp32", 1)
    assert report["fraction"] == pytest.approx(report["floor_seconds"] / report["seconds"])
    parts, scales = report["parts"], report["scales"]
    for key, rel in (("seconds", 0.3), ("floor_seconds", 1e-9)):  # a busy machine may stop the clock's reader
        assert sum(part[key] for part in parts.values()) == pytest.approx(report[key], rel=rel)
        outside = sum(scale[key] for scale in scales) + parts["decoder"][key]
        assert outside < report[key] * (1 + rel), "the rest is AdaLN's vectors, once for all scales"
    assert all(split["seconds"] > 0 for split in parts.values())
    assert parts["mlp"]["floor_seconds"] > 0
    assert [scale["scale"] for scale in scales] == ["1x1", "2x2", "3x3", "4x4"]
    assert [row["batch"] for row in report["batches"]] == [1, 2]
    assert [rival["name"] for rival in report["against"]] == ["prefix", "float32"]
    assert report["peak_bytes"] > report["weight_bytes"] > 0
    with Image.open(tmp_path / "out" / "sample.png") as chart:
        assert min(chart.size) > 200


def test_the_floor_counts_every_product_with_weights():
    work = Subject("tiny", "float32").work(batch=1, guidance=1.5)
    config = Subject("tiny", "float32").configs()[1]
    C, rows = config.width, 2 * config.schedule.length
    mlp = sum(item.flop for item in work if item.phase.part == "mlp")
    assert mlp == 2 * rows * 2 * config.mlp_ratio * C * C * config.depth
    head = [item for item in work if item.phase == Phase("head", 3)]
    assert [(item.flop, item.weight_bytes) for item in head] == [(2 * 2 * 16 * C * 32, 4 * 32 * C)]
    adaln = [item for item in work if item.phase.part == "adaln"]
    assert all(item.phase.scale is None for item in adaln), "once for all scales"
    bfloat16 = Subject("tiny", "bfloat16").work(batch=1, guidance=1.5)
    assert sum(i.weight_bytes for i in bfloat16) < 0.6 * sum(i.weight_bytes for i in work)


@pytest.mark.parametrize("scan", ["raster", "bidirectional"])
def test_running_over_the_prefix_again_draws_the_same_tokens(scan, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], scan=scan))
    sampler = Subject("tiny", "float32").model().sampler(SEED, guidance=1.5)
    carried = sampler.sample(torch.tensor([0, 1]), [0, 1]).tokens
    seen = []
    with rerunning(sampler.generator):
        mamba = sampler.generator.blocks[0].mamba.mamba
        hook = mamba.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
        again = sampler.sample(torch.tensor([0, 1]), [0, 1]).tokens
    hook.remove()
    assert seen == [1, 5, 14, 30]
    assert all(torch.equal(a, b) for a, b in zip(carried, again, strict=True))
    after = sampler.sample(torch.tensor([0, 1]), [0, 1]).tokens
    assert len(seen) == 4
    assert all(torch.equal(a, b) for a, b in zip(carried, after, strict=True))


def test_a_stopwatch_gives_each_moment_to_one_part(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    watch = Stopwatch()  # 0
    watch.enter("adaln")  # 1: one second of sampling
    watch.at(2)  # 3: two of AdaLN
    watch.enter("mlp")  # 6: three more, at scale 2
    watch.leave()  # 10
    watch.leave()  # 15
    assert watch.seconds == {
        Phase("sampling", None): 1.0,
        Phase("adaln", None): 2.0,
        Phase("adaln", 2): 3.0 + 5.0,
        Phase("mlp", 2): 4.0,
    }
