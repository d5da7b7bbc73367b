"""Rejection sampling against doing it by hand: draw every candidate alone, score it alone, sort."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mvar.cli import main
from mvar.features.judge import Judge
from mvar.model import Model
from mvar.sampling import likelihood, rejection
from mvar.sampling.config import SamplingSettings

USUAL = {"guidance": 2.0, "top_k": 20, "temperature": 0.9}
LABELS = ["cat", "owl", "dog"]


@pytest.fixture
def model(build):
    return Model(*build(), ["cat", "dog", "owl"], defaults=SamplingSettings(**USUAL))


def brightness(pixels, labels):
    return pixels.mean((1, 2, 3)) + labels


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.tokens, b.tokens, strict=True))


def network(classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Judge(classes).eval()


# --- selection ---


def test_the_best_of_each_group_are_kept_best_first(model):
    out = model.sample_best(LABELS, brightness, keep=2, of=5, seed=7)
    kept = []
    for group, label in enumerate(model.label_ids(LABELS)):
        alone = [model.sample(label, seed=7, index=[group * 5 + place]) for place in range(5)]
        scores = [float(drawn.pixels.mean()) + label for drawn in alone]
        torch.testing.assert_close(out.scores_Gn[group], torch.tensor(scores).double(), rtol=1e-5, atol=1e-5)
        for place in sorted(range(5), key=lambda place: -scores[place])[:2]:
            kept.append((group * 5 + place, scores[place], alone[place]))
    assert out.candidates == [number for number, _, _ in kept]
    assert out.scores.tolist() == pytest.approx([score for _, score, _ in kept], abs=1e-5)
    for i, (_, _, drawn) in enumerate(kept):
        assert same(out.select(torch.tensor([i])), drawn)
        torch.testing.assert_close(out.pixels[i : i + 1], drawn.pixels, rtol=1e-4, atol=1e-4)


def test_of_equal_candidates_the_first_is_kept(model):
    out = model.sample_best(LABELS, lambda pixels, labels: torch.zeros(len(pixels)), keep=2, of=4)
    assert out.candidates == [0, 1, 4, 5, 8, 9]
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [-np.inf, -np.inf, 0.0, -np.inf]])
    assert rejection.best_places(scores, 3).tolist() == [[1, 2, 3], [2, 0, 1]]
    many = torch.zeros(1, 5000)  # more than a sort keeps by luck
    assert rejection.best_places(many, 20).tolist() == [list(range(20))]


@pytest.mark.parametrize("fork_at", [0, 2])
def test_neither_batches_nor_other_groups_change_a_group(model, fork_at):
    options = {"keep": 2, "of": 4, "fork_at": fork_at, "seed": 1}
    whole = model.sample_best(LABELS, **options)
    for size in (1, 3, 5, 8):  # parts of a group, and several groups
        split = model.sample_best(LABELS, batch_size=size, **options)
        assert split.candidates == whole.candidates
        assert same(split, whole)
        torch.testing.assert_close(split.scores_Gn, whole.scores_Gn, rtol=1e-4, atol=1e-4)
    alone = model.sample_best("dog", index=[2], **options)
    assert alone.candidates == whole.candidates[4:]
    assert same(alone, whole.select(torch.arange(4, 6)))
    other = model.sample_best(LABELS, **{**options, "seed": 2})
    assert not same(other, whole)


# --- judges ---


def test_the_model_judges_by_the_difference_of_two_likelihoods(model):
    out = model.sample_best(LABELS, of=3, keep=3, seed=4)
    labels = torch.tensor(model.label_ids(LABELS)).repeat_interleave(3)
    null = torch.full_like(labels, 3)
    for i in range(9):  # each alone: the token maps as drawn, raw
        maps = [tokens[i : i + 1] for tokens in out.tokens]
        with_class, without = (
            likelihood.score(model.tokenizer, model.generator, maps, c[i : i + 1]).log_prob for c in (labels, null)
        )
        assert float(out.scores[i]) == pytest.approx(float(with_class - without), abs=1e-3)
    assert out.scores_Gn.std() > 0.1
    raw = model.sample_best(LABELS, of=3, keep=3, seed=4, guidance=0.0, temperature=1.0, top_k=0)
    again = rejection.own_scores(model.tokenizer, model.generator, raw.tokens, labels)
    torch.testing.assert_close(raw.scores, again, rtol=1e-4, atol=1e-4)


def test_a_classifier_judges_by_the_wanted_class(model, tmp_path):
    judge = network()
    judge.save(tmp_path / "judge.safetensors")
    by_file = model.sample_best(LABELS, tmp_path / "judge.safetensors", of=3, keep=3)
    with torch.no_grad():
        log_prob = judge(by_file.pixels).log_softmax(1)
    wanted = [log_prob[i, c] for i, c in enumerate(c for c in model.label_ids(LABELS) for _ in range(3))]
    torch.testing.assert_close(by_file.scores.float(), torch.stack(wanted), rtol=1e-4, atol=1e-4)
    assert model.sample_best(LABELS, judge, of=3, keep=3).candidates == by_file.candidates
    assert model.sample_best(LABELS, judge, of=3, smooth=True).tokens is None


# --- shared maps ---


def test_candidates_share_their_coarse_maps_which_run_once(model, monkeypatch):
    rows, step = [], model.generator.step
    monkeypatch.setattr(model.generator, "step", lambda x, *rest, **more: rows.append(len(x)) or step(x, *rest, **more))
    options = {"keep": 6, "of": 6, "guidance": 0.0}
    forked = model.sample_best(["cat", "owl"], brightness, fork_at=2, **options)
    assert rows == [2, 2, 12, 12]
    rows.clear()
    model.sample_best(["cat", "owl"], brightness, fork_at=2, batch_size=4, **options)  # a group is more than a batch
    assert rows == [1, 1, 4, 4, 2, 2] * 2
    rows.clear()
    apart = model.sample_best(["cat", "owl"], brightness, **options)
    assert rows == [12] * 4
    for k, (shared, own) in enumerate(zip(forked.tokens, apart.tokens, strict=True)):
        for group in (slice(0, 6), slice(6, 12)):
            assert (len(shared[group].unique(dim=0)) == 1) == (k < 2)
            assert k == 0 or len(own[group].unique(dim=0)) > 1  # the first map is one token
    # The first candidate of a group is the same plain sample either way.
    for number in (0, 6):
        first, plain = (out.select(torch.tensor([out.candidates.index(number)])) for out in (forked, apart))
        assert same(first, plain)


# --- report and command ---


def test_the_report_says_what_was_accepted_and_what_it_cost(model):
    out = model.sample_best(LABELS, brightness, keep=2, of=8)
    found = out.report
    assert (found["acceptance"], found["kept"], found["candidates"], found["candidates_per_kept"]) == (0.25, 6, 24, 4)
    best = np.sort(out.scores_Gn.numpy(), axis=1)[:, -2:]
    assert found["mean_score_kept"] == pytest.approx(best.mean())
    assert found["mean_score_all"] == pytest.approx(out.scores_Gn.mean().item())
    assert found["seconds_per_kept"] * 6 == pytest.approx(out.seconds)


def test_the_command_writes_the_kept_images_and_what_they_took(bundle, tmp_path, capsys):
    images, npz, sheet = tmp_path / "images", tmp_path / "all" / "a.npz", tmp_path / "a.png"
    sample = ["sample-best", "--model", bundle, "--labels", "dog,cat", "--per-class", "4", "--seed", "3"]
    sample += ["--keep", "2", "--of", "5", "--fork-at", "1"]
    main([*sample, "--out-dir", str(images), "--npz", str(npz), "--out", str(sheet)])
    assert capsys.readouterr().out.startswith("kept 8 of 20 candidates (40 %) by judge self: mean score ")
    report = json.loads((images / "samples.json").read_text())
    assert (npz.parent / "a.samples.json").read_text() == (images / "samples.json").read_text()
    assert [image["class"] for image in report["images"]] == ["dog"] * 4 + ["cat"] * 4
    assert (report["top_k"], report["judge"], report["acceptance"]) == (900, "self", 0.4)
    groups = ["dog", "dog", "cat", "cat"]
    out = Model.from_pretrained(bundle).sample_best(groups, keep=2, of=5, fork_at=1, seed=3)
    assert [image["candidate"] for image in report["images"]] == out.candidates
    with np.load(npz) as arrays:
        places = np.argsort(arrays["index"])
        assert arrays["arr_1"][places].tolist() == [1] * 4 + [0] * 4
        for i, image in enumerate(out.images):
            name = f"{'dog' if i < 4 else 'cat'}-{i:06d}.png"
            with Image.open(images / name) as written:
                assert np.array_equal(np.asarray(written), np.asarray(image))
            assert np.array_equal(arrays["arr_0"][places[i]], np.asarray(image))
    main([*sample, "--out-dir", str(tmp_path / "again"), "--batch-size", "3"])
    again = json.loads((tmp_path / "again" / "samples.json").read_text())
    assert [image["candidate"] for image in again["images"]] == out.candidates


def test_the_command_takes_a_classifier_of_the_models_classes(bundle, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network(2).save("two.safetensors")
    network(3).save("three.safetensors")
    main(["sample-best", "--model", bundle, "--judge", "two.safetensors", "--of", "3", "--npz", "a.npz"])
    report = json.loads((tmp_path / "a.samples.json").read_text())
    assert report["judge_sha256"] == hashlib.sha256(Path("two.safetensors").read_bytes()).hexdigest()
    assert (report["judge"], report["kept"], report["candidates"]) == ("two.safetensors", 2, 6)
    lines = refused("sample-best", "--model", bundle, "--judge", "three.safetensors", "--npz", "b.npz")
    assert lines == ["mvar: judge: tells 3 classes apart, the model has 2; train one on these"]
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--judge", "self", "--keep", "9"], "mvar: keep = 9: of 8 candidates give 1 to 8 to keep"),
        (["--judge", "self", "--fork-at", "3"], "mvar: fork_at = 3: give 0 (no map is shared) to 2"),
        (["--judge", "self", "--keep", "2"], "mvar: per_class = 1: a group gives keep = 2 images; give a multiple of"),
        (["--judge", "self", "--smooth"], "mvar: smooth = True: judge = 'self' needs tokens, which smooth samples"),
        (["--judge", "self", "--labels", "-1"], "mvar: labels has -1: judge = 'self' compares a class with none"),
        (["--judge", "nowhere.safetensors"], "mvar: judge = 'nowhere.safetensors': not a judge's file; train one"),
    ],
)
def test_the_command_refuses(refused, bundle, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    lines = refused("sample-best", "--model", bundle, *arguments)
    assert lines[0].startswith(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("classes", "call", "message"),
    [
        (3, lambda m: m.sample_best(-1, network()), "labels has -1: a classifier scores the wanted class; give class"),
        (0, lambda m: m.sample_best(None), "judge = 'self': the model has no classes, so that log p"),
        (3, lambda m: m.sample_best(["cat", 0], index=[1]), "index has 1 numbers for 2 labels: give one for each"),
    ],
)
def test_refused_before_any_work(build, monkeypatch, classes, call, message):
    some = Model(*build(num_classes=classes), ["cat", "dog", "owl"][:classes])
    monkeypatch.setattr(some.generator, "step", None)  # nothing may be drawn
    with pytest.raises(ValueError, match=message):
        call(some)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda pixels, labels: pixels.mean((2, 3)), r"judge: gave scores of shape \(4, 3\) for 4 images; expected"),
        (lambda pixels, labels: pixels.mean((1, 2, 3)) * torch.nan, "judge: gave NaN as a score"),
    ],
)
def test_a_judge_that_gives_no_scores(model, judge, message):
    with pytest.raises(ValueError, match=message):
        model.sample_best("cat", judge, of=4)
    # A function may give what becomes a tensor, and may judge images of no class.
    assert model.sample_best(None, lambda pixels, labels: list(range(4)), of=4).candidates == [3]
