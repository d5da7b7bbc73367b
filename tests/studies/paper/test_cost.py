import json
from dataclasses import replace
from itertools import count

import pytest
from PIL import Image

from mvar.bench import cases
from mvar.bench.cases import Case, Subject
from mvar.bench.measuring import SEED
from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.generator.network import Generator
from mvar.sampling.cost import Cost
from mvar.studies.paper import cost
from mvar.studies.paper.cost import Split, run
from mvar.tokenizer.config import TokenizerConfig

SHARED = {"vocab_size": 32, "latent_channels": 8}
TINY = {
    "tiny": GeneratorConfig(depth=3, width=64, num_classes=2, sides=[1, 2, 4], **SHARED),
    "tiny-var": GeneratorConfig(depth=5, width=64, attention="global", mamba=False, sides=[1, 2, 4], **SHARED),
    "tiny-large": GeneratorConfig(depth=3, width=64, num_classes=2, sides=[1, 2, 8], **SHARED),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for name, config in TINY.items():
        monkeypatch.setitem(PRESETS, name, config)
        form = TokenizerConfig(channels=32, multipliers=(1, 1), res_blocks=1, sides=config.sides, **SHARED)
        monkeypatch.setitem(cases.TOKENIZERS, name, form)
    monkeypatch.setattr(cost, "PAPER", {"tiny": (132e6, 1.0), "tiny-var": (None, 0.2), "tiny-large": (None, None)})
    monkeypatch.setattr(cost, "cost", lambda tokenizer, generator: Cost(generator.depth, tokenizer.image_shape[0], 0))
    monkeypatch.setattr(cost, "REFERENCES", ("tiny",))
    monkeypatch.setattr(cost, "WHOLE", ("tiny",))


def test_every_case_takes_turns_and_is_counted(tmp_path, capsys):
    report = run(2, tmp_path / "out")
    ours, var, large = results = report["results"]
    assert [(r["name"], r["kind"], r["depth"], r["pixels"]) for r in results] == [
        ("tiny", "M-VAR", 3, 8),
        ("tiny-var", "VAR", 5, 8),
        ("tiny-large", "M-VAR", 3, 16),
    ]
    for r in results:
        assert r["parameters"] == sum(p.numel() for p in Generator(TINY[r["name"]]).parameters())
        assert (r["generator_flop"], r["decoder_flop"]) == (r["depth"], r["pixels"]), "of the whole model"
        assert len(r["rounds"]) == 2
        assert r["two_blocks"]["rest"] > 0
        assert r["two_blocks"]["blocks"] > 0
    decoders = [r["two_blocks"]["decoder"] > 0 for r in results]
    assert decoders == [True, False, True], "once for each image size"
    assert ours["whole"] > 0
    assert (var["whole"], large["relative"]) == (None, None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == list(TINY)
    assert "132 M" in lines[1]
    written = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert written["results"] == json.loads(json.dumps(results))
    with pytest.raises(ValueError, match=r"is of other cases \(tiny, tiny-var, tiny-large\); delete it, or give other"):
        run(1, tmp_path / "out", cases=["tiny"])
    with Image.open(tmp_path / "out" / "cost.png") as figure:
        assert min(figure.size) > 200
    section = cost.results(tmp_path / "out", tmp_path)
    assert "\n".join(lines) in section
    assert section.endswith("](out/cost.png)")


def test_blocks_are_scaled_to_the_depth_and_the_rest_is_not(monkeypatch, tmp_path):
    drawn = count(1)

    def draw(case):
        """Rounds of four draws, each slower by a factor, as on a machine that slows down."""
        factor = 10 ** ((next(drawn) - 1) // 4)
        depth, decodes = case.sampler.generator.config.depth, case.decodes
        return Split(1.0 * factor, 2.0 * depth * factor, 5.0 * factor * decodes)

    monkeypatch.setattr(cost, "_draw", draw)
    ours, var, large = run(3, tmp_path)["results"]
    assert ours["rounds"] == [10 * (1 + 6 + 5), 100 * 12, 1000 * 12]
    assert (ours["seconds"], ours["whole"], ours["relative"]) == (1200, 1200, 1)
    assert var["seconds"] == 100 * (1 + 10 + 5)
    assert var["relative"] == pytest.approx(16 / 12)
    assert (large["seconds"], large["relative"]) == (1200, None)


def test_the_vectors_of_adaln_belong_to_the_blocks_unless_these_share_them(monkeypatch):
    """By a clock that moves on by one whenever it is read."""
    splits = {}
    for shared in (False, True):
        monkeypatch.setitem(PRESETS, "tiny", replace(TINY["tiny"], shared_adaln=shared))
        case = Case(Subject("tiny", "float32", 2).model().sampler(SEED, guidance=1.5))
        clock = count()
        with monkeypatch.context() as patch:
            patch.setattr("time.perf_counter", lambda clock=clock: float(next(clock)))
            splits[shared] = cost._draw(case)
    own, common = splits[False], splits[True]
    assert sum(own) == sum(common)
    assert own.blocks - common.blocks == common.rest - own.rest > 0
    assert own.decoder == common.decoder == 1


def test_a_model_of_two_blocks_has_the_width_and_heads_of_the_whole():
    for name in ("d32", "var-d36-s"):
        few, config = Subject(name, "float32", 2).configs()[1], PRESETS[name]
        assert (few.depth, few.width, few.heads) == (2, config.width, config.heads)
        assert few.mixers[0] == config.mixers[0]


def test_what_cannot_be_timed_is_refused_in_a_line(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"^cases = tinny: choose from "):
        run(1, tmp_path, cases=["tiny", "tinny"])
    with pytest.raises(ValueError, match=r"^cases = \[\]: choose from "):
        run(1, tmp_path, cases=[])
    with pytest.raises(ValueError, match=r"^dtype = 'float16': "):
        run(1, tmp_path, dtype="float16")
    monkeypatch.setattr("mvar.machine.free_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match=r"^cases: 4 models of 2 or all blocks take about .*; give fewer$"):
        run(1, tmp_path)


def test_verdict_compares_what_was_timed():
    def result(name, flop, *seconds):
        return {"name": name, "generator_flop": flop, "rounds": seconds, "parameters": flop, "paper": {"time": 2.0}}

    small = [result("var-d12", 10, 1, 2, 3), result("d12", 15, 1, 4, 9), result("var-d16", 20, 4, 4, 4)]
    large = [result("d24-512", 10, 2, 2, 2), result("var-d36-s", 23, 4, 5, 9)]
    (same_depth,) = cost.verdict({"results": small})
    assert same_depth.startswith("M-VAR takes 1.50 times the FLOP of a VAR of the same depth, and 2.00 times as long (")
    assert same_depth.endswith(" (1.00 to 3.00 in single rounds).")
    small.append(result("d16", 28, 5, 6, 7))
    same_depth, at_512 = cost.verdict({"results": [*small, *large]})
    assert "takes 1.40 to 1.50 times the FLOP of a VAR of the same depth, and 1.50 to 2.00 times" in same_depth
    assert "takes 2.30 times the FLOP and 2.50 times the time of M-VAR-d24 (2.00 to 4.50 in single rounds)" in at_512
    (published,) = cost.verdict({"results": [result("d24", 30, 8, 9, 9), result("var-d30", 40, 10, 10, 10)]})
    assert published.startswith("M-VAR-d24 takes 10 % less time than VAR-d30 and has 25 % less parameters")
    assert cost.verdict({"results": [small[0], large[0]]}) == []
