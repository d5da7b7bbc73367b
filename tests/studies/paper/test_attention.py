import json
import math
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvar.analysis import captures
from mvar.analysis.captures import capturing, log_decays, score_sums
from mvar.analysis.meter import equal_weights
from mvar.cli import main
from mvar.generator.config import GeneratorConfig
from mvar.generator.init import initialise
from mvar.generator.network import Generator
from mvar.model import load
from mvar.nn.attention import Attention
from mvar.nn.mamba2 import Mamba2
from mvar.ops.mamba import MambaState
from mvar.scales import SIDES_512, ScaleSchedule
from mvar.studies.paper.attention import PAPER, computation, results, run

MIXED = GeneratorConfig(
    depth=4,
    width=64,
    attention=["global", "intra", "none", "recent"],
    mamba=[False, True, True, True],
    num_classes=2,
    vocab_size=32,
    latent_channels=8,
    sides=[1, 2, 4],
)
AREAS = (1, 4, 16)
SEEN = {"global": [[0], [0, 1], [0, 1, 2]], "recent": [[0], [0, 1], [1, 2]], "intra": [[0], [1], [2]]}


def randomised(network, std=0.3):
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=rng))
    return network.eval()


def dense_weights(attention, x):
    """(B, H, L, L) by the formulas of the paper, and the values."""
    q, k, v = (F.linear(x, w) for w in attention.qkv.weight.chunk(3))
    heads = [t.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for t in (q + attention.q_bias, k, v)]
    if attention.log_scale is not None:
        q, k = (F.normalize(t, dim=-1) for t in heads[:2])
        heads[:2] = [q * attention.log_scale.clamp(max=math.log(100)).exp(), k]
    level = torch.tensor(ScaleSchedule([1, 2, 4]).level_ids)
    visible = torch.stack([torch.isin(level, torch.tensor(SEEN[attention.reach][k])) for k in level.tolist()])
    scores = attention.softmax_scale * heads[0] @ heads[1].mT
    return scores.masked_fill(~visible, -math.inf).softmax(-1), heads[2]


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("reach", ["global", "recent", "intra"])
@torch.no_grad()
def test_scores_are_the_weights_that_attention_uses_in_chunks_of_any_size(reach, qk_norm, monkeypatch):
    attention = randomised(Attention(16, 2, reach=reach, qk_norm=qk_norm).double())
    x = torch.randn(3, 21, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights, v = dense_weights(attention, x)
    taken = []
    with capturing(attention, {"qkv": taken.append}):
        expected = attention.proj((weights @ v + attention.v_bias.view(2, 1, 8)).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attention(x, AREAS)[0], expected, rtol=0, atol=1e-12)
    by_query = torch.stack([rows.sum((0, 1, 2)) for rows in weights.split(AREAS, dim=2)])
    expected = torch.stack([part.sum(1) for part in by_query.split(AREAS, dim=1)], dim=1)
    for chunk_bytes in (1, 8 * 3 * 2 * 21 * 5, 2**26):
        monkeypatch.setattr(captures, "CHUNK_BYTES", chunk_bytes)
        torch.testing.assert_close(score_sums(attention, taken[0], AREAS), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_decays_are_what_is_left_of_a_state(bidirectional):
    mamba = randomised(Mamba2(32, state_size=16, head_dim=16, bidirectional=bidirectional).double())
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(3, 21, 32, dtype=torch.float64, generator=rng)
    tail, ssm = mamba.initial_state(3)
    ssm = 1 + torch.rand(ssm.shape, dtype=torch.float64, generator=rng)
    log_BKh = log_decays(mamba, mamba.in_proj(x), AREAS)
    for k, end in enumerate(accumulate(AREAS)):
        # The state is linear in the one before: what remains of that is the difference that it makes.
        states = (MambaState(tail, before) for before in (ssm, torch.zeros_like(ssm)))
        after, without = (mamba(x[:, :end], AREAS[: k + 1], state)[1].ssm_BhPN for state in states)
        left_BhPN = log_BKh[:, : k + 1].sum(1).exp()[..., None, None].expand_as(ssm)
        torch.testing.assert_close((after - without) / ssm, left_BhPN, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_a_captured_pass_gives_the_same_logits_bit_for_bit():
    generator = randomised(Generator(MIXED))
    inputs = torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2])
    expected, shapes = generator(inputs[1], inputs[0]), {}
    names = [f"blocks.{i}.attention.qkv" for i in (0, 1, 3)] + [f"blocks.{i}.mamba.in_proj" for i in (1, 2, 3)]

    def takes(name):
        def take(output):
            shapes[name] = output.shape[:2]
            return torch.zeros_like(output)  # which a hook would put in the output's place

        return take

    with capturing(generator, {name: takes(name) for name in names}):
        assert torch.equal(generator(inputs[1], inputs[0]), expected)
    assert shapes == dict.fromkeys(names, (2, 21))
    shapes.clear()
    generator(inputs[1], inputs[0])
    assert not shapes, "the hooks are gone"


@torch.no_grad()
def test_a_long_sequence_is_never_squared():
    """d16's width at 512 px: all weights at once would take 321 MB, and half as much again for the softmax."""
    areas = ScaleSchedule(SIDES_512).areas
    attention = Attention(1024, 16, reach="global", qk_norm=True)
    largest = 0

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            sizes = [t.numel() * t.element_size() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            largest = max(largest, *sizes, 0)
            return out

    qkv = torch.randn(1, sum(areas), 3072, generator=torch.Generator().manual_seed(0))
    with Watching():
        sums = score_sums(attention, qkv, areas)
    assert 2**25 < largest <= captures.CHUNK_BYTES
    torch.testing.assert_close(sums.sum(1), 16 * torch.tensor(areas).double(), rtol=1e-5, atol=0)


def test_computation_is_table_1_and_counts_visible_pairs():
    shares = [computation(ScaleSchedule(sides))["of_all"] for sides, _ in PAPER.values()]
    assert [round(100 * share, 1) for share in shares] == [23.9, 30.3]
    schedule = ScaleSchedule([1, [2, 3], 4])
    level = torch.tensor(schedule.level_ids)
    same, visible = level[:, None] == level, level[:, None] >= level
    counted = computation(schedule)
    assert counted["of_all"] == pytest.approx(float(same.double().mean()))
    assert counted["of_visible"] == pytest.approx(int(same.sum()) / int(visible.sum()))


def test_equal_weights_are_those_of_the_keys_that_are_seen():
    rows = {"global": [1 / 21, 4 / 21, 16 / 21], "recent": [0, 4 / 20, 16 / 20], "intra": [0, 0, 1]}
    for reach, last in rows.items():
        scores_KK = equal_weights(AREAS, reach)
        assert scores_KK[2].tolist() == pytest.approx(last)
        torch.testing.assert_close(scores_KK.sum(1), torch.ones(3, dtype=torch.float64))


# --- the study ---


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Five validation images of each of two classes."""
    root = tmp_path_factory.mktemp("data")
    pixels = torch.randint(0, 256, (12, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for i, image in enumerate(pixels.numpy()):
        path = root / ("train" if i >= 10 else "val") / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return str(root)


@pytest.fixture
def saved(bundle, tmp_path):
    """Saves a model with these changes of MIXED, its generator changed by a function; gives its folder."""

    def save(change=randomised, **changes):
        generator = Generator(replace(MIXED, **changes))
        initialise(generator, 0)
        change(generator)
        replace(load(bundle), generator=generator.eval()).save(tmp_path / "model")
        return str(tmp_path / "model")

    return save


def plain(generator):
    """Equal scores for all keys, and the same decay for each token: 0.9 in a block's first head, 0.99 in the second."""
    with torch.no_grad():
        for block in generator.blocks:
            if block.attention is not None:
                block.attention.qkv.weight.zero_()
            if block.mamba is not None:
                block.mamba.in_proj.weight.zero_()
                block.mamba.dt_bias.fill_(math.log(math.e - 1))  # dt = 1
                block.mamba.A_log.copy_(torch.tensor([-math.log(0.9), -math.log(0.99)]).log())


def test_the_report_says_where_attention_looks_and_what_mamba_keeps(saved, data, tmp_path, capsys):
    model = saved(plain, attention=["global", "intra", "none", "global"])
    report = run(model, data, 6, tmp_path / "out", "cpu", "A mix of blocks")
    assert report["images"] == 6
    one, first, second, last = report["blocks"]
    assert (first["score"], second["score"], one["state"]) == (None, None, None)
    # Queries of 1, 4 and 16 tokens see 1, 5 and 21 keys.
    scores = [[1], [1 / 5, 4 / 5], [1 / 21, 4 / 21, 16 / 21]]
    inter = (4 * 1 / 5 + 16 * 5 / 21) / 21
    for found in (one["score"], last["score"], report["score"], report["equal_weights"]):
        assert [pytest.approx(row) for row in scores] == found["scores"]
        assert (found["intra"], found["inter"]) == pytest.approx((1 - inter, inter))
        back = 16 / 21 / 21 / inter
        assert found["back"] == pytest.approx([1 - back, back])
        assert found["distance"] == [None, pytest.approx(1), pytest.approx(1.2)]
    left = [[(0.9**n + 0.99**n) / 2 for n in ends] for ends in ((4, 20), (16,))]
    for block in (first, second, last):
        assert block["state"]["left"] == [pytest.approx(row, rel=1e-4) for row in left]
    text = capsys.readouterr().out
    assert "does not apply" not in text
    assert f"{100 * (1 - inter):.1f} %" in text
    written = json.loads((tmp_path / "out" / "attention-A_mix_of_blocks.json").read_text())
    assert {name: written[name] for name in report} == json.loads(json.dumps(report))
    with Image.open(tmp_path / "out" / "attention-A_mix_of_blocks.png") as figure:
        assert min(figure.size) > 200
    section = results(tmp_path / "out", tmp_path / "docs")
    assert section.startswith("```text\nA mix of blocks: 6 images, ")
    assert "](../out/attention-A_mix_of_blocks.png)" in section
    own = f"{100 * (1 - inter):.0f} %"
    assert f"Of the attention score, {own} (A mix of blocks) lies inside a scale; " in section
    assert f"; if every visible key got the same, {own} would" in section
    assert ". The paper has 77 to 80 %, where 40 to 48 % would. " in section
    before = f"{100 - 100 * back:.0f} % (A mix of blocks)"
    assert f"Of the score on coarser scales, {before} goes to the scale just before" in section
    left_after = f"{100 * sum(row[0] for row in left) / 2:.0f} % (A mix of blocks)"
    assert section.endswith(f"{left_after} of Mamba's state is left, by block, in the mean over scales.")
    assert results(tmp_path, tmp_path) == "Not measured yet."


def test_a_token_cache_gives_the_same_as_its_images_and_any_batch_size(saved, data, tmp_path, monkeypatch):
    model, cache = saved(), str(tmp_path / "cache")
    main(["tokenize", "--data", data, "--tokenizer", model, "--out", cache, "--resize-factor", "1"])
    of_images = run(model, data, 10, tmp_path / "out", "cpu")
    monkeypatch.setattr("mvar.studies.paper.attention.AT_ONCE", 3)
    of_cache = run(model, cache, 10, tmp_path / "of-cache", "cpu")
    assert of_cache["bits_per_token"] == pytest.approx(of_images["bits_per_token"], rel=1e-6)
    for one, other in zip(of_cache["blocks"], of_images["blocks"], strict=True):
        for part, key in (("score", "back"), ("score", "intra_by_scale"), ("state", "left")):
            if one[part]:
                torch.testing.assert_close(one[part][key], other[part][key], rtol=1e-4, atol=1e-6)
    expected = load(model).score(images_of(data), [0] * 5 + [1] * 5).bits_per_token.mean()
    assert of_images["bits_per_token"] == pytest.approx(float(expected), rel=1e-6)


def test_another_measurement_is_not_replaced(saved, data, tmp_path):
    model, report = saved(), tmp_path / "out" / "attention-model.json"
    run(model, data, 4, tmp_path / "out", "cpu", "model")
    kept = report.read_bytes()
    run(model, data, 4, tmp_path / "out", "cpu", "model")
    with pytest.raises(ValueError, match=r"attention-model\.json': is of another measurement \(images differ\)"):
        run(model, data, 2, tmp_path / "out", "cpu", "model")
    with pytest.raises(ValueError, match=r"another measurement \(sha256 differ\)"):
        run(saved(qk_norm=False), data, 4, tmp_path / "out", "cpu", "model")
    assert report.read_bytes() == kept


def images_of(data):
    return [f"{data}/val/{name}/{i}.png" for start, name in enumerate(("cat", "dog")) for i in range(start, 10, 2)]


def test_what_does_not_apply_is_said(saved, data, tmp_path, capsys):
    report = run(saved(attention="intra", mamba=True), data, 2, tmp_path / "m-var", "cpu")
    assert report["score"] is None
    assert "score: does not apply, as attention sees its own scale only" in capsys.readouterr().out
    report = run(saved(attention="global", mamba=False, num_classes=2), data, 2, tmp_path / "var", "cpu")
    assert all(block["state"] is None for block in report["blocks"])
    assert "left: does not apply without Mamba" in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused_in_a_line(saved, bundle, data, tmp_path):
    with pytest.raises(ValueError, match=r"^images = 0: "):
        run(bundle, data, 0, tmp_path, "cpu")
    with pytest.raises(ValueError, match=r"^model = .*: no block sees other scales"):
        run(saved(attention="intra", mamba=False), data, 2, tmp_path, "cpu")
    other = load(bundle)
    with torch.no_grad():
        other.tokenizer.quantizer.codebook.add_(1)
    other.save(tmp_path / "other")
    main(["tokenize", "--data", data, "--tokenizer", str(tmp_path / "other"), "--out", str(tmp_path / "cache")])
    with pytest.raises(ValueError, match=r"^data = .*/cache': another tokenizer"):
        run(bundle, str(tmp_path / "cache"), 2, tmp_path, "cpu")
