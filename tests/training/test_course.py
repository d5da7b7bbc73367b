"""Runs of so many minutes, on a clock that the tests move: a step takes what they say."""

import json
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mvar.cli import main
from mvar.model import load
from mvar.training import course as timing
from mvar.training.config import TokenizerTraining
from mvar.training.course import TimedCourse
from mvar.training.generator import task as generator
from mvar.training.generator.task import GeneratorTask
from mvar.training.optim import lr_factor
from mvar.training.parallel import Ranks
from mvar.training.rehearsal import rehearse
from mvar.training.run import checkpoints
from mvar.training.run.checkpoints import Found
from mvar.training.tokenizer import task as tokenizer
from mvar.training.tokenizer.task import TokenizerTask

from .runs import Killed, checkpoint, metrics, same_bits

BEGAN, STARTUP, ALONE = 1000.0, 20.0, Ranks(device=torch.device("cpu"))
IMAGE, PREVIEW, CHECKPOINT = 0.01, 1.0, 0.5  # seconds


class Clock:
    now = BEGAN

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(TimedCourse, "clock", staticmethod(clock))
    return clock


# --- the course by itself ---


class Walk:
    """A course to its end, or until it is killed; `left` are the seconds that remain when all was written.

    `laid` are the numbers of steps, each time they changed; `shares` and `rates` those of each step.
    """

    def __init__(self, clock, minutes, cost, stages=((0.0, 1.0),), found=None, until=float("inf"), **every) -> None:
        config = TokenizerTraining(data="d", out="o", minutes=minutes, warmup=0.02, lr_end=0.01, **every)
        course = TimedCourse(config, minutes, 15, clock.now, found)
        clock.now += STARTUP
        course.stages = list(stages)
        course.start(IMAGE, PREVIEW, CHECKPOINT)
        course.check()
        self.laid, self.shares, self.rates, self.said, self.events = [course.steps], [], [], [], []
        self.config, self.course, self.described = config, course, course.described()
        while course.done < course.steps and clock.now - BEGAN < until:
            self.said += filter(None, [course.lay(ALONE)])
            self.laid += [course.steps] * (course.steps != self.laid[-1])
            self.shares.append(course.share)
            self.rates.append(lr_factor(*course.place(course.done), config.warmup, config.lr_end))
            clock.now += cost(course.share, clock.now - BEGAN)
            course.advance()
            for event, seconds in (("validation", course.val_images * IMAGE + PREVIEW), ("checkpoint", CHECKPOINT)):
                if course.is_due(event, course.done):
                    self.events.append(event)
                    with course.timing(event):
                        clock.now += seconds
                    if event == "checkpoint":
                        self.found = Found(Path(), course.done, {"course": course.notes()})
        self.left = course.left


def test_steps_of_constant_speed_are_laid_once(clock):
    walk = Walk(clock, 15, lambda share, now: 1.0)
    assert len(walk.laid) == 1
    assert 0 < walk.left < 15  # 4 s and 1 % of the minutes are a reserve
    assert len(walk.rates) == walk.laid[0] == pytest.approx(900 - 20 - 9 * 10 - 13 - 5, abs=2)
    assert walk.events.count("validation") == 9  # 1 % of the minutes and the preview: 9 are 10 %
    assert walk.events.count("checkpoint") == 10
    assert walk.events[-2:] == ["validation", "checkpoint"]
    steps = walk.laid[0]
    assert walk.rates == pytest.approx([lr_factor(i, steps, 0.02, 0.01) for i in range(steps)], abs=1e-9)
    assert not walk.said
    assert walk.described.startswith(f"minutes = 15: about {steps} steps of 64 images, 1 s a step; validation on 900 ")


@pytest.mark.parametrize(
    ("cost", "stages"),
    [
        (lambda share, now: 1.0 if now < 450 else 2.0, [(0.0, 1.0)]),  # another program begins
        (lambda share, now: 2.0 if now < 450 else 1.0, [(0.0, 2.0)]),  # another program ends
        (lambda share, now: 60.0 if 400 < now < 402 else 1.0, [(0.0, 1.0)]),  # a stall
        (lambda share, now: 1.0 if share < 0.2 else 2.2, [(0.0, 1.0), (0.2, 1.5)]),  # the discriminator
    ],
)
def test_a_run_ends_on_time_whatever_the_speed(clock, cost, stages):
    walk = Walk(clock, 15, cost, stages)
    assert 0 < walk.left < 25
    assert walk.rates[-1] == pytest.approx(0.01, abs=1e-9)
    assert all(a < b for a, b in pairwise(walk.shares))
    fallen = [rate for rate, share in zip(walk.rates, walk.shares, strict=True) if share > 0.05]
    assert all(a >= b - 1e-9 for a, b in pairwise(fallen))
    assert 6 <= walk.events.count("validation") <= 14


def test_a_change_of_speed_is_said_and_noise_is_not(clock):
    walk = Walk(clock, 15, lambda share, now: 1.0 if now < 450 else 2.0)
    assert 1 <= len(walk.said) <= 3
    assert walk.said[0].startswith("step 4")
    assert ": steps and validations take longer than expected, so about " in walk.said[0]
    clock.now = BEGAN
    walk = Walk(clock, 15, lambda share, now: (0.9, 1.1, 1.0, 0.8, 1.2)[int(now) % 5])
    assert not walk.said


def test_a_run_that_goes_on_keeps_its_end(clock):
    first = Walk(clock, 15, lambda share, now: 1.0, until=530)
    spent = first.found.notes["course"]["spent"]
    assert 400 < spent < 530
    clock.now = 50_000.0  # later
    second = Walk(clock, 15, lambda share, now: 1.0, found=first.found)
    assert 0 < second.left < 15
    assert clock.now - 50_000 == pytest.approx(900 - spent - second.left)
    assert second.shares[0] == first.found.notes["course"]["share"]
    assert second.rates[0] == pytest.approx(first.rates[first.found.step], abs=0.01)
    assert second.rates[-1] == pytest.approx(0.01, abs=1e-9)
    # More minutes stretch learning rate and weight decay; what phases there were do not come back.
    third = TimedCourse(first.config, 30, 15, clock.now, first.found)
    assert third.share == pytest.approx(second.shares[0] / 2)
    third.steps = third.done + 100
    place, length = third.phase(third.done)
    assert place / length == pytest.approx(second.shares[0])


def test_too_few_minutes(clock):
    with pytest.raises(ValueError) as caught:
        Walk(clock, 0.5, lambda share, now: 1.0)
    message = str(caught.value)
    assert message.startswith("minutes = 0.5: 20 s have passed before the first step; a step takes 1 s and the end 2 s")
    least = float(message.rpartition(" ")[2])
    clock.now = BEGAN
    walk = Walk(clock, least, lambda share, now: 1.0)
    assert len(walk.rates) >= 20


# --- whole runs ---

TASKS = {"tokenizer": (tokenizer.train, TokenizerTask), "generator": (generator.train, GeneratorTask)}
TIMED = {"steps": None, "validate_every": None, "checkpoint_every": None, "val_images": None, "minutes": 1}
SELDOM = {"validate_every": 30, "checkpoint_every": 3}


@pytest.fixture(params=TASKS)
def kind(request, tokenizer_run, generator_run):
    """(train, task class, config with changes) of each kind of run, which lasts a minute."""
    of = {"tokenizer": tokenizer_run, "generator": generator_run}[request.param]
    return *TASKS[request.param], lambda **changes: of(**{**TIMED, **changes})


@pytest.fixture
def ticking(clock, monkeypatch):
    """Let a step of a task take three seconds, four with the discriminator; it may die at one."""
    monkeypatch.setattr(timing, "LEAST_STEPS", 6)

    def tick(task, dies=-1):
        original = task.loss

        def loss(self, step, part):
            if step == dies:
                raise Killed
            value, terms = original(self, step, part)
            clock.now += 4.0 if "adversarial" in terms else 3.0
            return value, terms

        monkeypatch.setattr(task, "loss", loss)

    return tick


def test_a_run_of_minutes_ends_with_everything_written(kind, clock, ticking, capsys):
    train, task, config = kind
    ticking(task)
    config = config(lr_end=0.25)
    model = train(config)
    assert 0 < BEGAN + 60 - clock.now < 9  # a step, 4 s and 1 %
    out, lines = Path(config.out), metrics(config.out)
    steps = lines[-1]["step"]
    assert steps == model.provenance["steps"] == load(out, device="cpu").provenance["steps"]
    assert checkpoint(out)["step"] == steps
    assert [line["step"] for line in lines if "val_loss" in line][-1] == steps
    assert (out / "previews" / f"{steps:07d}.png").is_file()
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates[-1] == pytest.approx(0.25 * config.peak_lr)
    assert max(rates) == config.peak_lr
    assert len(list((out / "checkpoints").iterdir())) >= 2
    assert f"minutes = 1: about {steps} steps of 5 images, " in capsys.readouterr().err
    if task is TokenizerTask:
        joined = [line["step"] for line in lines if "adversarial" in line]
        assert joined[0] == pytest.approx(0.3 * steps, abs=2)  # as adversarial_start says, of the steps


def test_the_rehearsal_leaves_no_trace(kind, clock, ticking, monkeypatch):
    train, task, config = kind
    ticking(task)

    def tensors(task):
        networks = {name: network.state_dict() for name, network in task.networks.items()}
        return {**task.state(), **networks}

    def watched(task, config, ranks):
        before, batch = deepcopy(tensors(task)), task.loader.batch(0).rows
        rehearse(task, config, ranks)
        assert same_bits(before, tensors(task))
        assert torch.equal(batch, task.loader.batch(0).rows)
        assert all(p.grad is None for network in task.networks.values() for p in network.parameters())
        assert task.networks["model"].training
        assert not Path(config.out).exists()
        raise Killed

    monkeypatch.setattr(f"{train.__module__}.rehearse", watched)
    with pytest.raises(Killed):
        train(config(progressive=0.5, progressive_from=1) if task is GeneratorTask else config())


def test_a_killed_run_goes_on_to_the_same_end(tokenizer_run, clock, ticking, monkeypatch):
    train, task = TASKS["tokenizer"]
    config = tokenizer_run(**{**TIMED, **SELDOM})
    original = task.loss
    ticking(task, dies=4)
    with pytest.raises(ValueError, match=r"^minutes = 0.2: 6 s have passed before the first step; .*; give at least"):
        train(replace(config, minutes=0.2))
    assert not Path(config.out).exists()
    clock.now = BEGAN
    with pytest.raises(Killed):
        train(config)
    monkeypatch.setattr(task, "loss", original)
    found = checkpoints.latest(Path(config.out))
    assert found.step == 3
    with pytest.raises(ValueError, match=r"^minutes = 0.2: the run in .* has done 0\.\d; give at least as many$"):
        train(replace(config, resume=True, minutes=0.2))
    spent, clock.now = found.notes["course"]["spent"], BEGAN
    ticking(task)
    train(replace(config, resume=True))
    assert 0 < BEGAN + 60 - spent - clock.now < 9  # a step, 4 s and 1 %
    rates = {line["step"]: line["lr"] for line in metrics(config.out) if "lr" in line}
    assert list(rates) == list(range(1, max(rates) + 1))
    late = [rate for step, rate in rates.items() if step > 3]
    assert late == sorted(late, reverse=True)

    steps = max(rates)
    train(replace(config, resume=True))  # nothing is left to do
    assert metrics(config.out)[-1]["step"] == steps
    with pytest.warns(UserWarning, match=r"minutes = 1.5: the run in .* has 1; it goes on with the new value"):
        train(replace(config, resume=True, minutes=1.5))
    assert metrics(config.out)[-1]["step"] > steps + 2
    with pytest.raises(ValueError, match=r"^minutes = 1: the run in .* has done 1\.[345]; give at least as many$"):
        train(replace(config, resume=True))


# --- the command ---


@pytest.mark.parametrize(("minutes", "preset"), [(15, "quick32"), (60, "tiny32")])
def test_minutes_choose_a_preset(minutes, preset, capsys):
    chosen = TokenizerTraining.preset(minutes=minutes, data="d", out="o")
    assert chosen == TokenizerTraining.preset(preset, minutes=minutes, data="d", out="o")
    assert (chosen.steps, chosen.val_images, chosen.validate_every) == (None, None, None)
    main(["train", "tokenizer", "--minutes", str(minutes), "--print-config"])
    assert f"preset: {preset}\n" in capsys.readouterr().out


def test_what_a_run_may_be_resumed_with(tokenizer_run, trained_tokenizer, clock, ticking):
    ticking(TokenizerTask)
    config = tokenizer_run(**{**TIMED, **SELDOM})
    with pytest.raises(ValueError, match=r"^steps = 6: minutes = 1 decides how many; leave one of them out$"):
        tokenizer.train(replace(config, steps=6))
    tokenizer.train(config)
    with pytest.raises(ValueError, match=r"^steps = 900: the run in .* was begun with minutes = 1; resume with"):
        tokenizer.train(replace(config, minutes=None, steps=900, resume=True))
    counted = tokenizer_run(minutes=1, steps=None, resume=True, out=str(trained_tokenizer))
    with pytest.raises(ValueError, match=r"^minutes = 1: the run in .* was begun with steps = 2; resume with"):
        tokenizer.train(counted)

    before = json.loads(Path(config.out, "run.json").read_text())
    main(["train", "tokenizer", "--out", config.out, "--resume"])  # nothing is left to do
    assert json.loads(Path(config.out, "run.json").read_text()) == {**before, "resume": True}
