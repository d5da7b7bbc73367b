"""The options of a tokenizer's run."""

import json
import re
import shutil
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import torch

from mvar.model import load
from mvar.ops.noise import uniform
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.quantizer import MultiScaleQuantizer
from mvar.training.tokenizer.task import TokenizerTask, train

from .runs import checkpoint, metrics, poison, same_bits, train_until

ONCE = {"validate_every": 24, "checkpoint_every": 24}  # at the end
FROZEN = ("encoder.", "quant_conv.", "quantizer.")


def weights(folder):
    return load(folder, "cpu", "float32").tokenizer.state_dict()


# --- quantiser dropout ---


def test_scales_are_dropped_with_their_chance_by_each_images_own_numbers(tokenizer_run, monkeypatch):
    config = tokenizer_run(steps=4, batch_size=20, scale_dropout=0.4, accumulate=2, seed=3, **ONCE)
    seen, quantize = [], MultiScaleQuantizer.quantize

    def noted(self, f, scales_B=None):
        seen.append(scales_B)
        return quantize(self, f, scales_B)

    monkeypatch.setattr(MultiScaleQuantizer, "quantize", noted)
    train(config)
    assert seen[-1] is None  # of the validation
    kept = torch.cat([scales_B for scales_B in seen if scales_B is not None]).tolist()
    noise = uniform(3, list(range(4 * 20)), 1, (2,)).tolist()
    assert kept == [(1 if b < 0.5 else 2) if a < 0.4 else 3 for a, b in noise]
    assert 0.3 < 1 - kept.count(3) / len(kept) < 0.5


# --- another start ---


@pytest.fixture
def start(trained_tokenizer, tmp_path):
    """A copy that may be deleted."""
    return str(shutil.copytree(trained_tokenizer, tmp_path / "start"))


def test_it_starts_from_the_weights_and_settings_of_another(tokenizer_run, start):
    config = tokenizer_run(init_from=start, model=TokenizerConfig(), steps=1, base_lr=1e-9, ema=0.0)
    model = train(config)
    torch.testing.assert_close(model.tokenizer.state_dict(), weights(start), rtol=0, atol=1e-8)
    assert model.tokenizer.config == load(start, "cpu").tokenizer.config != TokenizerConfig()
    assert json.loads(Path(config.out, "run.json").read_text())["model"]["sides"] == [1, 2, 4]


def test_it_resumes_without_what_it_started_from(tokenizer_run, start, tmp_path):
    whole = tokenizer_run(init_from=start, steps=3, validate_every=3)
    broken = replace(whole, out=str(tmp_path / "broken"))
    train(whole)
    train_until(2, train, TokenizerTask, broken)
    shutil.rmtree(start)
    train(replace(broken, resume=True))
    assert same_bits(checkpoint(whole.out), checkpoint(broken.out))


def test_decoder_only_keeps_every_token_map(tokenizer_run, start, fashion_arrays):
    # Whatever else would move the codes is asked for too.
    config = tokenizer_run(
        init_from=start, decoder_only=True, revive_every=1, revive_until=1.0, scale_dropout=1.0, steps=4
    )
    after, before = train(config).tokenizer, load(start, "cpu", "float32").tokenizer
    old, new = before.state_dict(), after.state_dict()
    kept = {name for name in old if torch.equal(old[name], new[name])}
    assert kept == {name for name in old if name.startswith(FROZEN)}
    assert same_bits(weights(config.out), new)
    pixels = (
        torch.tensor(fashion_arrays["val"][:3, :4, 10:18, 10:18]).flatten(0, 1)[:, None].expand(-1, 3, -1, -1) / 255
    )
    assert same_bits(after.encode(pixels), before.encode(pixels))
    records = [record for record in metrics(config.out) if "used" in record]
    assert all(record["used"] == records[0]["used"] for record in records)


# --- the discriminator ---


def test_the_discriminator_joins_in_at_its_step(tokenizer_run):
    config = tokenizer_run(steps=6, adversarial=0.4, adversarial_start=0.5, **ONCE)
    train(config)
    records = [record for record in metrics(config.out) if "loss" in record]
    joined = {"adversarial", "adversarial_weight", "discriminator", "score_real", "score_fake"}
    for record in records:
        assert joined & record.keys() == (joined if record["step"] > 3 else set()), record["step"]
        assert (record["grad_norm_discriminator"] > 0) == (record["step"] > 3)
    shares = [record["adversarial_weight"] for record in records[3:]]
    assert shares[0] == 0 < min(shares[1:])  # its word is worth nothing at first
    assert any(name.startswith("discriminator.") for name in checkpoint(config.out)["tensors"])

    without = tokenizer_run(steps=1, adversarial=0.0, out=f"{config.out}-without")
    train(without)
    assert not any("discriminator" in name for name in checkpoint(without.out)["tensors"])


@pytest.mark.filterwarnings("ignore:base_lr = ")
def test_more_steps_do_not_bring_phases_back(tokenizer_run):
    """The discriminator has joined in and revival has ended: they are shares of the steps the run was begun for."""
    config = tokenizer_run(steps=4, adversarial_start=0.5, revive_every=1, revive_until=0.5, dead_below=30.0, **ONCE)
    train(config)
    codebook = "model.quantizer.codebook"
    before = checkpoint(config.out)["tensors"][codebook]
    with pytest.warns(UserWarning, match="steps = 9"):
        train(replace(config, steps=9, base_lr=1e-12, resume=True))
    after = [record for record in metrics(config.out) if "loss" in record and record["step"] > 4]
    assert len(after) == 5
    assert all("adversarial" in record for record in after)
    assert (checkpoint(config.out)["tensors"][codebook] - before).abs().max() < 1e-6
    assert json.loads(Path(config.out, "data.json").read_text())["steps"] == 4


# --- precision and parts ---


def test_float16_trains_as_float32_does(tokenizer_run, tmp_path):
    runs = {}
    for dtype in ("float32", "float16"):
        config = tokenizer_run(
            steps=4, dtype=dtype, out=str(tmp_path / dtype), base_lr=1e-2, adversarial_start=0.0, **ONCE
        )
        train(config)
        runs[dtype] = [record for record in metrics(config.out) if "loss" in record]
        state = checkpoint(config.out)
        assert all(tensor.isfinite().all() for tensor in state["tensors"].values())
        assert (state["notes"]["scaler"] != {}) == (dtype == "float16")
    for exact, half in zip(runs["float32"], runs["float16"], strict=True):
        for name in ("loss", "l1", "l2", "vq", "discriminator"):
            assert half[name] == pytest.approx(exact[name], rel=0.1, abs=0.01), (exact["step"], name)
    for name in ("grad_norm", "grad_norm_discriminator"):
        assert runs["float16"][0][name] == pytest.approx(runs["float32"][0][name], rel=0.05)


def test_a_gradient_beyond_float16_is_skipped(tokenizer_run, monkeypatch):
    config = tokenizer_run(steps=5, dtype="float16", **ONCE)
    poison(monkeypatch, TokenizerTask, 3, lambda loss: loss + 1e36 * (loss - loss.detach()))
    train(config)
    records = [record for record in metrics(config.out) if "loss" in record]
    assert [isfinite(record["grad_norm"]) for record in records] == [True, True, True, False, True]
    assert all(record["loss"] < 100 for record in records)
    state = checkpoint(config.out)
    assert state["notes"]["scaler"]["scale"] == 2.0**15
    steps = {value.item() for name, value in state["tensors"].items() if re.search(r"optimizer.model.*\.step$", name)}
    assert steps == {4.0}  # of five
