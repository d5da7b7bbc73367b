"""What studies are derived from and conclude: hashes, marks, times, verdicts, power laws; nothing is trained."""

import math
from dataclasses import replace
from importlib import import_module
from itertools import count

import numpy as np
import pytest
import torch
from scipy import stats

from mvar.commands.study import COMPARISONS
from mvar.studies import page
from mvar.studies.comparing import data, real, records, timing
from mvar.studies.comparing.plan import FASHION, M_VAR, SCALES, VAR, Run
from mvar.studies.comparing.records import MINUTES, STEPS, Row, Spread
from mvar.studies.comparing.timing import Times
from mvar.studies.comparing.verdict import differences, verdict
from mvar.studies.paper import mixers, scaling

SMALL = SCALES["small"]


def test_hash_ignores_defaults_and_knows_what_matters():
    run = Run(scale=SMALL, data=FASHION, model=SMALL.model, seed=0, rate=0.1, marks=(2,))
    assert run.config["model"] == {"depth": 4, "width": 128, "heads": 4}
    assert "seeds" not in run.config["data"]
    changed = {
        "seed": replace(run, seed=1),
        "rate": replace(run, rate=0.2),
        "marks": replace(run, marks=(2, 3)),
        "model": replace(run, model=replace(SMALL.model, state_size=16)),
        "tokenizer": replace(run, data=replace(FASHION, tokenizer="another")),
        "training": replace(run, scale=replace(SMALL, training={**SMALL.training, "ema": 0.5})),
    }
    assert len({run.name, *(other.name for other in changed.values())}) == 1 + len(changed)
    own = replace(run, data=replace(FASHION, command=None))
    assert own.name == replace(own, data=replace(own.data, tokenizer="elsewhere")).name


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("name", COMPARISONS)
def test_every_study_has_variants_at_every_scale(name, scale):
    study = import_module(f"mvar.studies.paper.{name.replace('-', '_')}").STUDY
    assert len(study.variants(scale.model, scale)) >= 4


def tuned(losses, scale, reports):
    """The rates that are tried, in order, if this is the loss of each, and the one that is chosen."""
    for further in range(records.FURTHER + 1):
        for run in records.trials(scale.model, scale, reports, further):
            mark = {"steps": run.marks[0], "bits_per_token": losses(run.rate)}
            record = {"config": run.config, "tokenizer": "t", "marks": [mark]}
            page.write_json(records.path_of(run, reports), record, exact=["config"])
    tried = [run.rate for run in records.trials(scale.model, scale, reports)]
    return tried, records.chosen_rate(scale.model, scale, reports)


@pytest.mark.parametrize(
    ("losses", "tried", "chosen"),
    [
        (lambda rate: abs(rate - 2), [1, 2, 4], 2),
        (lambda rate: abs(rate - 8), [1, 2, 4, 8, 16], 8),
        (lambda rate: abs(rate - 0.6), [0.25, 0.5, 1, 2, 4], 0.5),
        (lambda rate: -rate, [1, 2, 4, 8, 16, 32], 32),  # not without end
        (lambda rate: math.nan if rate > 0.5 else 5 + rate, [0.125, 0.25, 0.5, 1, 2, 4], 0.125),
    ],
)
def test_rates_go_on_until_the_best_has_one_on_either_side(tmp_path, losses, tried, chosen):
    assert tuned(losses, replace(SMALL, rates=(1.0, 2.0, 4.0)), tmp_path) == (tried, chosen)


def test_two_rates_or_one_are_taken_as_they_are(tmp_path):
    assert tuned(lambda rate: -rate, replace(SMALL, rates=(1.0, 2.0)), tmp_path) == ([1, 2], 2)
    assert tuned(lambda rate: -rate, replace(SMALL, rates=(1.0,)), tmp_path) == ([], 1)


@pytest.mark.parametrize(
    ("long", "ratio", "marks"),
    [
        (False, 1.0, {STEPS: 400, MINUTES: 400}),
        (False, 0.51, {STEPS: 400, MINUTES: 800}),  # in units of 40
        (True, 0.51, {STEPS: 1200, MINUTES: 2400}),  # of 120
        (False, 0.96, {STEPS: 400, MINUTES: 400}),  # what clocks make of the same arithmetic
        (False, 1.3, {STEPS: 400, MINUTES: 320}),
        (False, None, {STEPS: 400}),
    ],
)
def test_marks_are_equal_steps_and_what_fits_into_equal_minutes(monkeypatch, tmp_path, long, ratio, marks):
    monkeypatch.setattr(timing, "read", lambda *_: Times(ratio, ratio, ratio, 1, 1))
    plan = replace(mixers.STUDY, long=long)
    assert records.marks(plan, SMALL.model, SMALL, tmp_path) == marks
    assert records.marks(replace(plan, losses_only=True), SMALL.model, SMALL, tmp_path) == {STEPS: marks[STEPS]}


def test_times_are_relative_to_m_var_on_a_machine_that_slows_down(monkeypatch, tmp_path, bundle):
    """Each call takes 1 % more of the first one's time than the call before."""
    calls = count()

    def cases(model, scale, tokenizer):
        quick = {"step": 1.0, "image": 2.0} if model.mamba else {"step": 0.5, "image": 1.6}
        return {kind: lambda seconds=seconds: seconds * (1 + next(calls) / 100) for kind, seconds in quick.items()}

    monkeypatch.setattr(timing, "_cases", cases)
    tokenizer = data.load_tokenizer(bundle, "cpu")
    models = mixers.STUDY.variants(SMALL.model, SMALL)
    timing.measure(models.values(), SMALL, tokenizer, tmp_path)
    found = {name: timing.read(model, SMALL, tmp_path) for name, model in models.items()}
    assert found[VAR][:2] == (pytest.approx(0.5, abs=1e-4), pytest.approx(0.8, abs=1e-4))
    assert found[M_VAR][:2] == (1, 1)
    assert found[M_VAR].parameters > found[VAR].parameters
    timing.measure(models.values(), replace(SMALL, name="on-a-gpu"), tokenizer, tmp_path, timed=False)
    untimed = timing.read(models[VAR], replace(SMALL, name="on-a-gpu"), tmp_path)
    assert untimed == (None, None, None, found[VAR].parameters, found[VAR].step_flop)


def test_a_machine_that_is_busy_while_m_var_takes_its_own_turn_is_said(monkeypatch, tmp_path, bundle):
    turns = count()
    cases = {kind: lambda: 1.2 if next(turns) % 4 in (1, 2) else 1.0 for kind in timing.KINDS}
    monkeypatch.setattr(timing, "_cases", lambda *_: cases)
    tokenizer = data.load_tokenizer(bundle, "cpu")
    with pytest.warns(UserWarning, match=r"the machine was busy: times are wrong by more than 6%"):
        timing.measure([SMALL.model], SMALL, tokenizer, tmp_path)


NOISE = (0.1, -0.1, 0.0)  # of three seeds


def rows(means, data="a", noise=NOISE, at=STEPS, steps=None, distance=None):
    """A row for each variant, with these mean losses; the variants' noise is alike, as seeds make it, or not at all."""
    found = []
    for turn, (name, loss) in enumerate(means.items()):
        own = noise if isinstance(noise[0], float) else noise[turn]
        losses, distances = [loss + n for n in own], [(distance or {}).get(name, 100.0) + 100 * n for n in own]
        measures = {"bits_per_token": records.spread(losses), "distance": records.spread(distances)}
        found.append(Row(name, data, at, (steps or {}).get(name, 400), 0.1, len(own), measures, "FD"))
    return found


OWN = ((0.1, -0.1, 0.0), (0.0, 0.1, -0.1), (-0.1, 0.0, 0.1))  # deviates from seed to seed in each variant otherwise


@pytest.mark.parametrize(
    ("found", "said"),
    [
        # By seed all differ by the same: however far seeds are apart, that is clear.
        (
            rows({M_VAR: 5.0, "better": 4.97, "worse": 5.2}),
            "smaller for *better* (-0.030), larger for *worse* (+0.200)",
        ),
        # The variance of what is left is 0.06 / 4: 2.78 x sqrt(2 x 0.015 / 3) = 0.278 with 4 degrees of freedom.
        (
            rows({M_VAR: 5.0, "near": 4.73, "far": 4.71}, noise=OWN),
            "smaller for *far* (-0.290), not clearly different for *near*",
        ),
        (rows({M_VAR: 5.0, "near": 4.73, "alike": 5.0}, noise=OWN), "not clearly different for any variant"),
        (rows({M_VAR: 5.0, "nan": math.nan, "x": 4.9}), "smaller for *x* (-0.100), not finite for *nan* (+nan)"),
    ],
)
def test_verdict_counts_only_what_seeds_do_not_explain(found, said):
    (sentence,) = verdict(found, M_VAR)
    assert sentence.startswith(f"On a, compared with M-VAR at equal steps, the loss is {said}; FD is ")


def test_verdict_errs_in_one_of_twenty_comparisons():
    """Equal variants, whose seeds have much in common: 5 % of 4,000 are 200, with a standard deviation of 14."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(1000):
        noise_VS = rng.normal(size=(5, 3)) + 3 * rng.normal(size=3)
        found = rows(dict.fromkeys((M_VAR, *"abcd"), 5.0), noise=noise_VS.tolist())
        wrong += sum(d.sign != 0 for d in differences(found, "a", STEPS, M_VAR, "bits_per_token").values())
    assert 140 < wrong < 260  # comparisons with one baseline err together


@pytest.mark.parametrize(
    ("v", "said"),
    [
        ((4.7, 4.8), "smaller for *v* (-0.300, -0.200)"),
        ((4.7, 5.3), "smaller on a and larger on b for *v* (-0.300, +0.300)"),
        ((5.0, 5.3), "larger on b for *v* (+0.000, +0.300)"),
    ],
)
def test_verdict_says_on_which_data_a_variant_differs(v, said):
    both = [row for data, loss in zip("ab", v, strict=True) for row in rows({M_VAR: 5.0, "v": loss}, data)]
    (sentence,) = verdict(both, M_VAR)
    assert (
        sentence
        == f"Compared with M-VAR at equal steps, the loss is {said}; FD is not clearly different for any variant."
    )


@pytest.mark.parametrize(
    ("loss", "rounding", "clear"), [(4.985, 0.0, False), (4.98, 0.0, True), (4.975, 0.02, False), (4.96, 0.02, True)]
)
def test_equal_minutes_must_differ_by_more_than_their_error(loss, rounding, clear):
    """In twice the steps the loss fell from 5.4 by about 0.42 bits; 3 % more of them are 0.018 bits."""
    before = rows({M_VAR: 5.0, "v": 5.4})
    ours, its = rows({M_VAR: 5.0, "v": loss}, at=MINUTES, steps={"v": 800})
    found = [*before, ours, its._replace(error=0.03 + rounding)]
    assert ("the loss is smaller for *v*" in verdict(found, M_VAR)[1]) == clear
    assert ("the loss is larger for *M-VAR*" in verdict(found, "v")[1]) == clear


@pytest.mark.parametrize(("loss", "clear"), [(4.99, False), (4.98, True)])
def test_equal_minutes_in_as_many_steps_have_the_error_of_others(loss, clear):
    """It is as steep as another variant is: 0.4 bits in twice the steps, 0.017 bits in 3 % more."""
    before = rows({M_VAR: 5.0, "v": 5.4, "as-long": loss})
    ours, *others = rows({M_VAR: 5.0, "v": 5.0, "as-long": loss}, at=MINUTES, steps={"v": 800})
    _, sentence = verdict([*before, ours, *(row._replace(error=0.03) for row in others)], M_VAR)
    assert ("the loss is smaller for *as-long*" in sentence) == clear


def test_distances_are_judged_alike():
    (sentence,) = verdict(rows({M_VAR: 5.0, "v": 5.0, "w": 5.0}, noise=OWN, distance={"v": 71.0, "w": 80.0}), M_VAR)
    assert sentence.endswith("; FD is smaller for *v* (-29), not clearly different for *w*.")


def test_one_seed_gives_no_verdict():
    single = rows({M_VAR: 5.0, "better": 4.0}, noise=(0.0,))
    assert verdict(single, M_VAR) == ["One seed on a: no verdict."]
    _, found = verdict([*single, *rows({M_VAR: 5.0, "better": 4.0}, "b")], M_VAR)
    assert found.startswith("On b, compared with M-VAR at equal steps, the loss is smaller for *better* (-1.000)")


def test_discriminant_finds_classes_that_a_line_separates():
    rng = torch.Generator().manual_seed(0)
    labels_N = torch.arange(300) % 3
    features_NF = torch.randn(300, 8, generator=rng) * torch.tensor([5.0] * 4 + [0.3] * 4)
    features_NF[:, 4:7] += 2 * torch.eye(3)[labels_N]
    classifier = real.Discriminant(features_NF[:200], labels_N[:200])
    assert (classifier(features_NF[200:]) == labels_N[200:]).float().mean() > 0.97


# --- power laws ---

SIZES = [1e6, 2e6, 4e6, 8e6, 16e6]


def losses(scale, slope, noise=0.0):
    """scale * x^slope, off by this share in turns."""
    return [scale * x**slope * (1 + noise * sign) for x, sign in zip(SIZES, (1, -1, 1, -1, 1), strict=True)]


def law(*rest):
    return scaling.fit(SIZES, losses(*rest))


def test_power_laws_are_found_with_their_intervals():
    exact, other = law(10, -0.1), law(12.5, -0.11)
    assert exact.slope == pytest.approx(-0.1)
    assert exact.half == pytest.approx(0, abs=1e-9)
    assert exact.bend == pytest.approx([-0.1] * 4)
    assert scaling.meeting(exact, other) == pytest.approx([1.25**100] * 3, rel=1e-6)
    noisy = law(10, -0.1, 0.01)
    known = stats.linregress(np.log(SIZES), np.log(losses(10, -0.1, 0.01)))
    assert (noisy.slope, noisy.half) == pytest.approx((known.slope, stats.t.ppf(0.95, 3) * known.stderr))
    assert scaling.fit([*SIZES, 1e9], [*losses(10, -0.1), math.nan]).slope == pytest.approx(-0.1)
    assert scaling.fit(SIZES[:3], [2.0, math.nan, 1.0]) is None


def test_laws_err_independently_and_meet_within_an_interval_only_if_their_slopes_differ():
    """All are fitted to the same errors; if these were taken for common ones, they would cancel where two laws meet."""
    first, alike, steeper = law(10, -0.1, 0.01), law(12.5, -0.11, 0.01), law(40, -0.2, 0.01)
    assert scaling.meeting(first, alike) is None
    place, low, high = scaling.meeting(first, steeper)
    assert place == pytest.approx(4**10, rel=1e-6)
    assert low < place / 1.1 < 1.1 * place < high


@pytest.mark.parametrize(("start", "said"), [(40, False), (400, True)])
def test_a_meeting_outside_the_measured_sizes_is_said(start, said):
    """Laws that meet at 4^10 = 1.0e6 and at 1.1e16 parameters."""
    found, times = [], {}
    for x in SIZES:
        for kind, scale, slope in ((VAR, 10, -0.1), (M_VAR, start, -0.2)):
            name = f"{kind} {x}"
            found.append(Row(name, "a", STEPS, 2, 0.1, 1, {"bits_per_token": Spread(scale * x**slope, 0.0)}))
            times[name] = Times(1, 1, 1, int(x), int(1e3 * x))
    by_parameters, _ = scaling.STUDY.conclude(found, times)
    assert "the two meet at" in by_parameters
    assert ("outside the measured sizes (1e+06 to 1.6e+07)" in by_parameters) == said


def test_scaling_needs_neither_samples_nor_minutes(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "chosen_rate", lambda *_: 0.1)
    (run,) = records.runs(scaling.STUDY, SMALL.model, SMALL, FASHION, tmp_path)
    assert (run.marks, run.sampled) == ((400,), False)
