"""The steps of the engine: what can be stopped, kept, forked and gone back to between scales."""

import pytest
import torch

from mvar.ops.filtering import guide
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import Drawing, Sampler, draw_together

USUAL = SamplingSettings(guidance=2.0, top_k=20, top_p=0.9, temperature=0.8)
MIXERS = [{}, {"attention": "global", "mamba": False}, {"attention": "recent", "scan": "bidirectional"}]
LABELS = torch.tensor([0, 2, 1])


def bits(canvas):
    """Every tensor that a canvas holds."""
    state = [t for block in canvas.state.blocks for part in block if part is not None for t in part]
    return [*canvas.modulation.blocks, canvas.modulation.head_B2C, *state, canvas.f_hat_BZHW, *canvas.tokens]


def same_maps(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("mixers", MIXERS)
def test_a_canvas_never_changes_so_that_going_back_is_bit_exact(build, mixers):
    sampler = Sampler(*build(**mixers), 3, USUAL)
    snapshot = sampler.draw(sampler.draw(sampler.start(LABELS, [5, 6, 7])))
    before = [t.clone() for t in bits(snapshot)]
    first = sampler.finish(snapshot)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(snapshot), strict=True))
    again = sampler.finish(snapshot)
    assert torch.equal(first.pixels, again.pixels)
    assert same_maps(first.tokens, sampler.sample(LABELS, [5, 6, 7]).tokens)


@pytest.mark.parametrize("mixers", MIXERS)
@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_following_given_maps_equals_having_drawn_them(build, mixers, guidance):
    sampler = Sampler(*build(**mixers), 0, SamplingSettings(guidance=guidance, top_k=20))
    start = sampler.start(LABELS, [0, 1, 2])
    drawn = sampler.draw(sampler.draw(sampler.draw(start)))
    for steps in ([3], [1, 2], [0, 2, 1]):  # all at once, or in pieces
        followed, done = start, 0
        for n in steps:
            followed = sampler.follow(followed, drawn.tokens[done : done + n])
            done += n
        assert followed.scales == 3
        for a, b in zip(bits(drawn), bits(followed), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert same_maps(drawn.tokens, followed.tokens)


@pytest.mark.parametrize("mixers", MIXERS)
def test_forks_share_the_past_and_go_their_own_ways(build, mixers):
    sampler = Sampler(*build(**mixers), 1, USUAL)
    stem = sampler.draw(sampler.draw(sampler.start(torch.tensor([1, 2]), [0, 1])))
    forks = sampler.finish(stem.fork([10, 11, 12, 20, 21, 22]))
    for k, tokens in enumerate(forks.tokens):
        assert (len(tokens[:3].unique(dim=0)) == 1) == (k < 2)
    # A fork is what one would get from the start with the past forced.
    alone = sampler.follow(sampler.start(torch.tensor([2]), [21]), [t[1:] for t in stem.tokens])
    assert same_maps([t[4:5] for t in forks.tokens], sampler.finish(alone).tokens)
    with pytest.raises(ValueError, match="index has 3 numbers for 2 images: give the same number for each"):
        stem.fork([1, 2, 3])


def test_selecting_images_keeps_them_as_they_were(build):
    sampler = Sampler(*build(), 1, USUAL)
    canvas = sampler.draw(sampler.start(LABELS, [0, 1, 2]))
    whole = sampler.finish(canvas)
    for rows in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        some = sampler.finish(canvas.select(rows))
        assert same_maps([t[rows] for t in whole.tokens], some.tokens)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"guidance": 3.0, "guidance_schedule": "constant"}, (3.0,) * 4),
        ({"guidance": [0, 2.5, 0.5, 0.0]}, (0, 2.5, 0.5, 0.0)),
    ],
)
def test_guidance_by_scale(build, settings, weights):
    tokenizer, generator = build()
    sampler = Sampler(tokenizer, generator, 0, SamplingSettings(top_k=1, **settings))
    assert sampler.guidance == weights
    out = sampler.sample(LABELS, [0, 1, 2])
    inputs = tokenizer.generator_inputs(out.tokens)
    with torch.no_grad():
        cond, uncond = generator(LABELS, inputs), generator(torch.full_like(LABELS, 3), inputs)
    for k, t in enumerate(weights):
        where = generator.schedule.slice(k)
        assert torch.equal(out.tokens[k], guide(cond, uncond, t)[:, where].argmax(-1))


def test_following_drops_the_unconditional_branch_too_and_refuses_wrong_maps(build):
    sampler = Sampler(*build(), 0, SamplingSettings(guidance=[2, 0, 0, 0]))
    start = sampler.start(LABELS, [0, 1, 2])
    assert start.guided
    drawn = sampler.draw(start)
    followed = sampler.follow(start, drawn.tokens)
    assert not followed.guided
    assert same_maps(sampler.finish(followed).tokens, sampler.finish(drawn).tokens)
    with pytest.raises(ValueError, match="maps: are of 1 images, the canvas has 3"):
        sampler.follow(start, [drawn.tokens[0][:1]])
    with pytest.raises(ValueError, match="maps: 5 given, 4 of 4 are missing"):
        sampler.follow(start, [drawn.tokens[0]] * 5)


def test_filters_by_scale(build):
    parts = build()
    by_scale = SamplingSettings(
        guidance=0.0, top_k=[1, 5, 0, 0], top_p=[1.0, 1.0, 0.5, 1.0], temperature=[9.0, 1.0, 1.0, 1e-3]
    )  # the last scale is greedy by its temperature
    out = Sampler(*parts, 0, by_scale).sample(LABELS, [0, 1, 2])
    sampler, greedy = Sampler(*parts, 0, by_scale), Sampler(*parts, 9, SamplingSettings(guidance=0.0, top_k=1))
    start = greedy.draw(greedy.start(LABELS, [0, 1, 2]))  # greedy whatever the seed
    assert torch.equal(out.tokens[0], start.tokens[0])
    assert sampler.filters == ((9.0, 1, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.5), (1e-3, 0, 1.0))
    last = greedy.follow(greedy.start(LABELS, [0, 1, 2]), out.tokens[:3])
    assert torch.equal(out.tokens[3], greedy.draw(last).tokens[3])
    tokenizer, generator = parts
    with torch.no_grad():
        logits = generator(LABELS, tokenizer.generator_inputs(out.tokens))
    for k in (1, 2):  # each token is among those that its scale's filter leaves, and not always the likeliest
        rows = logits[:, generator.schedule.slice(k)]
        likelier = rows > rows.gather(-1, out.tokens[k][..., None])
        assert likelier.any()
        mass = (rows.softmax(-1) * likelier).sum(-1)
        assert (likelier.sum(-1) < 5).all() if k == 1 else (mass < 0.5).all()


# --- several calls in one step ---

OTHERS = [
    SamplingSettings(guidance=0.0, top_k=5),
    USUAL,
    SamplingSettings(guidance=[1.0, 2.0, 0.0, 0.0], top_p=0.8),  # no unconditional branch after the second scale
    SamplingSettings(guidance=1.0, guidance_schedule="constant", smooth=True),
]


@pytest.mark.parametrize("mixers", MIXERS)
def test_drawn_together_each_is_as_if_drawn_alone(build, mixers):
    networks = build(**mixers)
    samplers = [Sampler(*networks, seed, settings) for seed, settings in enumerate(OTHERS)]
    labels = [torch.tensor([0, 1]), torch.tensor([2]), torch.tensor([1, 1, 3]), torch.tensor([3])]  # 3 is no class
    starts = [s.start(label, range(7, 7 + len(label))) for s, label in zip(samplers, labels, strict=True)]
    kept = torch.zeros(1, 16, dtype=torch.bool)
    kept[:, ::3] = True

    def keep(k, f_hat_BZHW):
        area = networks[0].quantizer.schedule.areas[k]
        return kept[:, :area], torch.full((len(f_hat_BZHW), area), 11)

    alone = [sampler.draw(start, keep) for sampler, start in zip(samplers, starts, strict=True)]
    together = draw_together([Drawing(*pair, keep) for pair in zip(samplers, starts, strict=True)])
    for _ in range(3):
        alone = [sampler.draw(canvas) for sampler, canvas in zip(samplers, alone, strict=True)]
        together = draw_together([Drawing(*pair) for pair in zip(samplers, together, strict=True)])
    for one, other, settings in zip(alone, together, OTHERS, strict=True):
        assert one.index == other.index
        assert one.guided == other.guided
        assert same_maps(one.tokens, other.tokens)
        limit = 1e-3 if settings.smooth else 1e-4  # its temperatures, down to 0.0135, enlarge rounding
        for a, b in zip(bits(one), bits(other), strict=True):
            torch.testing.assert_close(a, b, rtol=limit, atol=limit)


def test_logits_that_are_not_finite_fail_one_of_several(build):
    networks = build()
    with torch.no_grad():
        networks[1].class_embed.weight[-1] = torch.nan  # of no class, which only guided drawings need
    unguided = USUAL.changed(guidance=0.0)
    samplers = [Sampler(*networks, 0, settings) for settings in (unguided, USUAL, unguided)]
    drawings = [Drawing(s, s.draw(s.start(torch.tensor([1]), [i]))) for i, s in enumerate(samplers)]
    first, failed, last = draw_together(drawings)
    assert isinstance(failed, FloatingPointError)
    for i, canvas in ((0, first), (2, last)):
        assert same_maps(canvas.tokens, samplers[i].draw(drawings[i].canvas).tokens)


def test_only_drawings_of_one_scale_and_model_are_drawn_together(build):
    sampler, other = Sampler(*build(), 0, USUAL), Sampler(*build(), 0, USUAL)
    start = sampler.start(LABELS, [0, 1, 2])
    for sampler_2, canvas in ((sampler, sampler.draw(start)), (other, other.start(LABELS, [0, 1, 2]))):
        with pytest.raises(ValueError, match="several scales or models"):
            draw_together([Drawing(sampler, start), Drawing(sampler_2, canvas)])
