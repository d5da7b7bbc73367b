import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mvar.bench import cases
from mvar.bench.cases import SEED, Subject, rerunning
from mvar.bench.parts import Place, Stopwatch
from mvar.bench.sampling import bench
from mvar.cli import main
from mvar.generator.config import PRESETS


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """Two blocks, and nothing known of deeper ones."""
    monkeypatch.setitem(PRESETS, "tiny32", replace(PRESETS["tiny32"], depth=2))
    cases._work.cache_clear()
    yield
    cases._work.cache_clear()


def test_the_command_reports_parts_scales_and_rivals(small_machine, tmp_path, capsys):
    options = ["--preset", "tiny32", "--dtype", "fp32", "--batch", "1,2", "--rounds", "1", "--json"]
    main(["bench", "sample", *options, "--against", "prefix,bf16", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    report = json.loads(printed)
    assert printed.strip() == (tmp_path / "out" / "sample.json").read_text().strip()
    assert (report["preset"], report["dtype"], report["batch"]) == ("tiny32", "fp32", 1)
    assert report["fraction"] == pytest.approx(report["floor_seconds"] / report["seconds"])
    parts, scales = report["parts"], report["scales"]
    for key in ("seconds", "floor_seconds"):
        assert sum(part[key] for part in parts.values()) == pytest.approx(report[key], rel=0.05)
        outside = sum(scale[key] for scale in scales) + parts["decoder"][key]
        assert outside < report[key] * 1.05, "the rest is AdaLN's vectors, once for all scales"
    assert all(split["seconds"] > 0 for split in parts.values())
    assert parts["mlp"]["floor_seconds"] > 0
    assert [scale["scale"] for scale in scales] == ["1x1", "2x2", "3x3", "4x4", "6x6", "8x8"]
    assert [row["batch"] for row in report["batches"]] == [1, 2]
    assert [rival["name"] for rival in report["against"]] == ["prefix", "bf16"]
    assert report["peak_bytes"] > report["weight_bytes"] > 0
    with Image.open(tmp_path / "out" / "sample.png") as chart:
        assert min(chart.size) > 200


def test_the_floor_counts_every_product_with_weights():
    work = Subject("tiny32", "float32").work(batch=1, guidance=1.5)
    config = Subject("tiny32", "float32")._configs()[1]
    C, rows = config.width, 2 * config.schedule.length
    mlp = sum(item.flop for item in work if item.place.part == "mlp")
    assert mlp == 2 * rows * 2 * config.mlp_ratio * C * C * config.depth
    head = [item for item in work if item.place == Place("head", 3)]
    assert [(item.flop, item.weight_bytes) for item in head] == [(2 * 2 * 16 * C * 1024, 4 * 1024 * C)]
    adaln = [item for item in work if item.place.part == "adaln"]
    assert all(item.place.scale is None for item in adaln), "once for all scales"
    bfloat16 = Subject("tiny32", "bfloat16").work(batch=1, guidance=1.5)
    assert sum(i.weight_bytes for i in bfloat16) < 0.6 * sum(i.weight_bytes for i in work)


def test_running_over_the_prefix_again_draws_the_same_tokens():
    sampler = Subject("tiny32", "float32").model().sampler(SEED, guidance=1.5)
    carried = sampler.sample(torch.tensor([1, 2]), [0, 1]).tokens
    seen = []
    with rerunning(sampler.generator):
        hooks = [
            b.mamba.mamba.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
            for b in [sampler.generator.blocks[0]]
        ]
        again = sampler.sample(torch.tensor([1, 2]), [0, 1]).tokens
    for hook in hooks:
        hook.remove()
    assert seen == [1, 5, 14, 30, 66, 130]
    assert all(torch.equal(a, b) for a, b in zip(carried, again, strict=True))
    after = sampler.sample(torch.tensor([1, 2]), [0, 1]).tokens
    assert len(seen) == 6
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
        Place("sampling", None): 1.0,
        Place("adaln", None): 2.0,
        Place("adaln", 2): 3.0 + 5.0,
        Place("mlp", 2): 4.0,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "fp16"}, "dtype = 'fp16'"),
        ({"batches": [0]}, "batch = 0"),
        ({"rounds": 0}, "rounds = 0"),
        ({"against": ["var-d17"]}, "against = 'var-d17'"),
        ({"name": "no-such-model"}, "no-such-model"),
    ],
)
def test_bad_input_is_named(changes, message):
    good = {"name": "tiny32", "dtype": "bf16", "batches": [1], "guidance": 1.5, "rounds": 1}
    with pytest.raises(ValueError, match=message):
        bench(**{**good, **changes})


def test_what_cannot_fit_is_refused_with_numbers(monkeypatch):
    class Memory:
        available = 5e9

    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory)
    with pytest.raises(ValueError, match=r"GB, 5.0 GB of memory are free; give a smaller preset"):
        bench("d24", "bf16", [1], 1.5, 1)
