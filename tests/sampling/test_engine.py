from itertools import pairwise

import pytest
import torch

from mvar.ops.noise import gumbel
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import SampleOutput, Sampler, check_logits, to_uint8

Z, CLASSES = 8, 3
GREEDY = SamplingSettings(guidance=1.5, top_k=1)
USUAL = SamplingSettings(guidance=2.0, top_k=20, top_p=0.9, temperature=0.8)
MARGIN = 1e-4  # below it, two ways to batch a matmul may decide differently


def sample(tokenizer, generator, labels, index, seed, settings, on_scale=None):
    return Sampler(tokenizer, generator, seed, settings).sample(labels, index, on_scale)


def decisions(tokenizer, generator, labels, index, seed, settings, tokens):
    """What the teacher-forced forward says of the decisions behind `tokens`, by the definitions.

    Returns for each scale the scores (B, P, V) whose largest is to be the token, -inf where filtered out.
    """
    null = torch.full_like(labels, generator.config.num_classes)
    with torch.no_grad():
        inputs = tokenizer.generator_inputs(tokens)
        cond, uncond = generator(labels, inputs), generator(null, inputs)
    schedule = tokenizer.config.schedule
    scores = []
    for k in range(len(schedule)):
        ratio = k / (len(schedule) - 1) if len(schedule) > 1 else 1
        t = settings.guidance[k] if isinstance(settings.guidance, list) else settings.guidance * ratio
        where = schedule.slice(k)
        logits = ((1 + t) * cond[:, where] - t * uncond[:, where]) / settings.temperature
        for row in logits.view(-1, logits.shape[-1]):
            order = row.argsort(descending=True)
            if settings.top_k:
                row[order[settings.top_k :]] = -torch.inf
            ascending = row[order].softmax(-1).flip(0).cumsum(0).flip(0)
            ascending[0] = 1
            row[order[ascending <= 1 - settings.top_p]] = -torch.inf
        scores.append(logits + gumbel(seed, index, k, logits.shape[1:]))
    return scores


def close_calls(tokens, scores):
    """Decisions that differ from the largest score; each must be one that rounding may tip."""
    count = 0
    for tokens_BP, scores_BPV in zip(tokens, scores, strict=True):
        chosen = scores_BPV.gather(-1, tokens_BP[..., None])[..., 0]
        behind = scores_BPV.amax(-1) - chosen
        assert (behind < MARGIN).all(), f"a decision is {behind.max():.2e} behind"
        count += int((behind > 0).sum())
    return count


@pytest.mark.parametrize("settings", [GREEDY, USUAL, SamplingSettings(guidance=0.0, top_k=0, top_p=1.0)])
@pytest.mark.parametrize(
    "mixers", [{}, {"attention": "global", "mamba": False}, {"attention": "none", "shared_adaln": True}]
)
def test_tokens_are_the_decisions_of_the_teacher_forced_forward(build, settings, mixers):
    tokenizer, generator = build(**mixers)
    labels, index, seed = torch.tensor([0, 2, 1, CLASSES]), [4, 0, 7, 9], 11
    out = sample(tokenizer, generator, labels, index, seed, settings)
    assert [t.shape for t in out.tokens] == [(4, 1), (4, 4), (4, 9), (4, 16)]
    assert len(torch.cat(out.tokens, 1).unique()) > 10  # not a model that always says the same
    scores = decisions(tokenizer, generator, labels, index, seed, settings, out.tokens)
    assert close_calls(out.tokens, scores) <= 1
    torch.testing.assert_close(out.pixels, tokenizer.decode(out.tokens))
    assert not out.pixels.requires_grad


@pytest.mark.parametrize("seed", range(2))
def test_neither_batch_nor_order_changes_a_clear_decision(build, seed):
    tokenizer, generator = build()
    rng = torch.Generator().manual_seed(seed)
    labels, index = torch.randint(0, 4, (12,), generator=rng), torch.randperm(1000, generator=rng)[:12].tolist()
    whole = sample(tokenizer, generator, labels, index, seed, USUAL)
    cuts = sorted({0, 12, *torch.randint(1, 12, (4,), generator=rng).tolist()})
    order = torch.randperm(12, generator=rng)
    pieces = []
    for a, b in pairwise(cuts):
        rows = order[a:b]
        pieces.append(sample(tokenizer, generator, labels[rows], [index[i] for i in rows], seed, USUAL))
    tokens = [torch.cat(maps)[order.argsort()] for maps in zip(*(piece.tokens for piece in pieces), strict=True)]
    # Every decision of either is the right one but for close calls, which matmuls of another size may round otherwise.
    close = sum(
        close_calls(t, decisions(tokenizer, generator, labels, index, seed, USUAL, t)) for t in (whole.tokens, tokens)
    )
    differing = sum(int((a != b).sum()) for a, b in zip(whole.tokens, tokens, strict=True))
    assert differing == 0 or close > 0
    assert len(whole.tokens[-1].unique(dim=0)) == 12  # each index has a noise of its own


@pytest.mark.parametrize(
    ("labels", "guidance", "calls"),
    [
        ([0, 1], 2.0, [(4, 2), (4, 4), (4, 4), (4, 4)]),  # the first scale's weight is 0: no head for the second branch
        ([0, 1], [0, 2, 0, 0], [(4, 2), (4, 4), (2, 2), (2, 2)]),  # the second branch ends with the last weight
        ([0], 0.0, [(1, 1)] * 4),
        ([CLASSES], 1.5, [(1, 1)] * 4),  # both branches would be the same
    ],
)
def test_only_rows_that_guidance_needs_run(build, monkeypatch, labels, guidance, calls):
    tokenizer, generator = build()
    rows, step = [], generator.step

    def counted(x, *rest, **more):
        logits, state = step(x, *rest, **more)
        rows.append((len(x), len(logits)))
        return logits, state

    monkeypatch.setattr(generator, "step", counted)
    settings = SamplingSettings(guidance=guidance, top_k=20)
    out = sample(tokenizer, generator, torch.tensor(labels), range(len(labels)), 0, settings)
    assert rows == calls
    close_calls(
        out.tokens,
        decisions(tokenizer, generator, torch.tensor(labels), [*range(len(labels))], 0, settings, out.tokens),
    )


def test_one_scale_and_no_classes(build):
    tokenizer, generator = build(sides=(3,))
    labels = torch.tensor([1, 2])
    out = sample(tokenizer, generator, labels, [0, 1], 0, USUAL)
    close_calls(out.tokens, decisions(tokenizer, generator, labels, [0, 1], 0, USUAL, out.tokens))
    assert sample(*build(num_classes=0), torch.tensor([0]), [0], 0, USUAL).pixels.shape == (1, 3, 8, 8)


def test_smooth_is_the_definition(build):
    tokenizer, generator = build()
    quantizer, K = tokenizer.quantizer, 4
    settings = SamplingSettings(smooth=True, top_k=6, top_p=1.0, guidance=0.0)
    out = sample(tokenizer, generator, torch.tensor([2]), [3], 1, settings)
    assert out.tokens is None
    inputs = torch.zeros(1, 29, Z)  # filled scale by scale; later tokens do not matter
    f_hat = quantizer.zeros(1)
    for k, side in enumerate(tokenizer.config.sides):
        where, ratio = quantizer.schedule.slice(k), k / (K - 1)
        with torch.no_grad():
            if k > 0:
                inputs[:, where.start - 1 : where.stop - 1] = quantizer.input_of(f_hat, k).flatten(2).transpose(1, 2)
            logits = generator(torch.tensor([2]), inputs)[0, where]
            codes = []
            for row, noise in zip(logits, gumbel(1, [3], k, (side * side, len(quantizer.codebook)))[0], strict=True):
                kept = row.topk(6)
                scores = (kept.values * (1 + ratio) + noise[kept.indices]) / max(0.27 * (1 - 0.95 * ratio), 0.005)
                codes.append(scores.softmax(-1) @ quantizer.codebook[kept.indices])
            f_hat = quantizer.add(f_hat, torch.stack(codes, 1).view(1, Z, side, side), k)
    torch.testing.assert_close(out.pixels, tokenizer.decode_latent(f_hat), rtol=0, atol=1e-4)


def test_on_scale_decodes_only_when_asked(build, monkeypatch):
    tokenizer, generator = build()
    decoded, decode = [], tokenizer.decoded
    monkeypatch.setattr(tokenizer, "decoded", lambda f_hat: decoded.append(1) or decode(f_hat))
    calls = []
    out = sample(tokenizer, generator, torch.tensor([1]), [0], 0, USUAL, lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert len(decoded) == 1  # the result
    previews = [preview() for _, _, preview in calls]
    assert torch.equal(previews[-1], out.pixels)
    torch.testing.assert_close(previews[1], tokenizer.decode(out.tokens[:2]))


def test_images_round_to_nearest():
    pixels = torch.tensor([0.0, 0.49, 0.51, 254.49, 254.51, 255.0]).div(255).view(1, 1, 2, 3).expand(1, 3, 2, 3)
    assert to_uint8(pixels)[0, :, :, 0].tolist() == [[0, 0, 1], [254, 255, 255]]
    (image,) = SampleOutput(pixels, None).images
    assert image.size == (3, 2)
    assert image.getpixel((2, 0)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"guidance": -1, "top_k": [1, 2, 3, -4], "top_p": [0.5, 0, 1, 1], "temperature": 0},
            r"(?s)^guidance = -1: must be 0.*\ntop_k = -4: must lie in 0 to .*\ntop_p = 0: must lie in \(0.*\n"
            "temperature = 0: must be 0.001 to 1000; for greedy sampling set top_k = 1",
        ),
        ({"guidance": [1.0, 2.0]}, "guidance has 2 values: give one number, or one for each of the 4 scales"),
        ({"guidance_schedule": "cosine"}, "guidance_schedule = 'cosine': choose from linear or constant"),
    ],
)
def test_settings_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**settings).check(4)


def test_top_k_above_the_codebook_keeps_all(build):
    tokenizer, generator = build()
    a, b = (
        sample(tokenizer, generator, torch.tensor([0]), [0], 0, SamplingSettings(top_k=k)).tokens for k in (0, 10_000)
    )
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_logits_that_are_not_finite_stop_drawing(build):
    tokenizer, generator = build()
    with torch.no_grad():
        generator.pos_embed[0, generator.schedule.offsets[2] + 3, 0] = torch.nan  # the fourth token of the 3x3 map
    sampler = Sampler(tokenizer, generator, 0, USUAL)
    canvas = sampler.draw(sampler.draw(sampler.start(torch.tensor([0, 1]), [0, 1])))
    with pytest.raises(
        FloatingPointError, match=r"^scale 2 \(3x3\): the generator gives NaN or infinity: its weights are"
    ):
        sampler.draw(canvas)


def test_the_most_extreme_settings_draw_images(build):
    tokenizer, generator = build()
    for settings in ({"guidance": 1000.0, "temperature": 1e-3}, {"guidance": 1000.0, "temperature": 1e3}):
        assert (
            sample(tokenizer, generator, torch.tensor([0]), [0], 0, SamplingSettings(**settings))
            .pixels.isfinite()
            .all()
        )


def test_the_first_scale_with_bad_logits_is_named(build):
    schedule = build()[1].schedule
    logits = torch.zeros(2, sum(schedule.areas[1:]), 5)
    check_logits(logits, schedule, range(1, 4))
    logits[1, schedule.areas[1] :, 4] = -torch.inf
    with pytest.raises(FloatingPointError, match=r"^scale 2 \(3x3\): "):
        check_logits(logits, schedule, range(1, 4))


def test_pixels_that_are_not_finite_are_no_images(build):
    tokenizer, generator = build()
    with torch.no_grad():
        tokenizer.post_quant_conv.bias[0] = torch.inf
    with pytest.raises(
        FloatingPointError, match=r"^pixels: the decoder gives NaN or infinity: its weights are damaged"
    ):
        sample(tokenizer, generator, torch.tensor([0]), [0], 0, USUAL)
