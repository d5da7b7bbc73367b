import math

import pytest
import torch

from mvar.sampling import likelihood
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import Sampler

PLAIN = SamplingSettings(guidance=0.0, top_k=0, top_p=1.0)
MIXERS = [{}, {"attention": "global", "mamba": False}]


@pytest.fixture(params=MIXERS, ids=["m-var", "var"])
def model(build, request):
    return build(**request.param)


def drawn(model, n=3, seed=0):
    return Sampler(*model, seed, PLAIN).sample(torch.tensor([0, 1, 3] * n)[:n], range(n)).tokens


def test_score_is_the_sum_over_the_tokens_by_the_definition(model):
    tokenizer, generator = model
    maps, labels = drawn(model), torch.tensor([2, 0, 3])
    score = likelihood.score(tokenizer, generator, maps, labels)
    with torch.no_grad():
        logits = generator(labels, tokenizer.generator_inputs(maps))
    for b in range(3):
        for k, tokens in enumerate(maps):
            rows = logits[b, generator.schedule.slice(k)].double()
            expected = sum(float(row.log_softmax(0)[t]) for row, t in zip(rows, tokens[b], strict=True))
            assert float(score.log_prob_BK[b, k]) == pytest.approx(expected, abs=1e-3)
    assert float(score.bits_per_token[1]) == pytest.approx(-float(score.log_prob_BK[1].sum()) / math.log(2) / 30)
    by_scale = score.bits_per_token_scales * torch.tensor(generator.schedule.areas)
    torch.testing.assert_close(by_scale.sum(1) / 30, score.bits_per_token)


def test_score_of_a_forked_path_is_the_teacher_forced_sum(model):
    tokenizer, generator = model
    sampler = Sampler(tokenizer, generator, 4, PLAIN)
    canvas = sampler.draw(sampler.draw(sampler.start(torch.tensor([1]), [0]))).fork([7, 8])
    steps = torch.zeros(2, dtype=torch.float64)
    while canvas.scales < 4:
        k, before = canvas.scales, canvas
        canvas = sampler.draw(canvas)
        with torch.no_grad():
            inputs = tokenizer.quantizer.input_of(before.f_hat_BZHW, k).flatten(2).transpose(1, 2)
            x = generator.embed(inputs, before.modulation, range(k, k + 1))
            logits, _ = generator.step(x, before.modulation, before.state, range(k, k + 1))
        chosen = logits.log_softmax(-1).gather(-1, canvas.tokens[k][..., None])
        steps += chosen.double().sum((1, 2))
    log_prob = likelihood.score(tokenizer, generator, canvas.tokens, torch.tensor([1, 1])).log_prob_BK
    torch.testing.assert_close(log_prob[:, 2:].sum(1), steps, rtol=0, atol=1e-3)
    torch.testing.assert_close(log_prob[0, :2], log_prob[1, :2])


def test_probabilities_of_all_maps_sum_to_one(build):
    tokenizer, generator = build(sides=(1, 1))
    V = len(tokenizer.quantizer.codebook)
    maps = [torch.arange(V).repeat_interleave(V)[:, None], torch.arange(V).repeat(V)[:, None]]
    log_prob = likelihood.score(tokenizer, generator, maps, torch.ones(V * V, dtype=torch.long)).log_prob
    assert float(log_prob.exp().sum()) == pytest.approx(1, abs=1e-4)


def test_classes_in_one_go_equal_classes_one_by_one(model, monkeypatch):
    tokenizer, generator = model
    maps = drawn(model, 5)
    ways = []
    for rows in (2, 4, 7, 64):  # batches that cut classes, images, or nothing
        monkeypatch.setattr(likelihood, "fitting_rows", lambda *_, rows=rows: rows)
        ways.append(likelihood.class_log_probs(tokenizer, generator, maps))
        torch.testing.assert_close(ways[0], ways[-1], rtol=0, atol=1e-3)
    together = ways[0]
    for c in range(3):
        alone = likelihood.score(tokenizer, generator, maps, torch.full((5,), c)).log_prob_BK
        torch.testing.assert_close(together[:, c], alone, rtol=0, atol=1e-3)


def test_classes_are_found_by_bayes_rule(model):
    tokenizer, generator = model
    maps, prior = drawn(model), torch.tensor([0.2, 0.5, 0.3]).double()
    found = likelihood.classify(tokenizer, generator, maps, ["a", "b", "c"], prior.tolist())
    joint = likelihood.class_log_probs(tokenizer, generator, maps).sum(2) + prior.log()
    expected = (joint - joint.amax(1, keepdim=True)).exp()
    torch.testing.assert_close(found.log_posterior_BC.exp(), expected / expected.sum(1, keepdim=True))
    assert found.labels == ["abc"[i] for i in joint.argmax(1)]


def test_logits_that_are_not_finite_stop_scoring_and_classifying(model):
    tokenizer, generator = model
    maps = drawn(model)
    with torch.no_grad():
        generator.head.bias[5] = torch.inf
    for call in (
        lambda: likelihood.score(tokenizer, generator, maps, torch.tensor([0, 1, 2])),
        lambda: likelihood.class_log_probs(tokenizer, generator, maps),
    ):
        with pytest.raises(FloatingPointError, match=r"^scale 0 \(1x1\): the generator gives NaN or infinity: its"):
            call()
