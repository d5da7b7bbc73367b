"""Requests in many threads: they share steps, get what they would get alone, and nobody waits for ever."""

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from mvar.model import load
from mvar.web import batching
from mvar.web.batching import Batcher


@pytest.fixture
def model(bundle):
    """With logits that are far from flat."""
    loaded = load(bundle)
    torch.nn.init.normal_(loaded.generator.head.weight, generator=torch.Generator().manual_seed(0))
    return loaded


@pytest.fixture
def steps(monkeypatch) -> list[list]:
    """The drawings of each step."""
    seen = []
    draw_together = batching.draw_together

    def recorded(drawings):
        seen.append(list(drawings))
        return draw_together(drawings)

    monkeypatch.setattr(batching, "draw_together", recorded)
    return seen


class Left(Exception):
    """Someone does not wait for an answer any more."""


def at_once(batcher, calls):
    """Results, or exceptions, of calls that begin at the same time in threads of one company."""
    begin = Barrier(len(calls))

    def run(call):
        with batcher.joined():
            begin.wait()
            try:
                return call()
            except Exception as error:
                return error

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def is_idle(batcher):
    return batcher._present == batcher._settled == batcher._busy == len(batcher._waiting) == len(batcher._turns) == 0


@pytest.mark.parametrize("processors", [1, 2])
def test_requests_share_steps_and_get_what_they_would_get_alone(model, steps, processors, monkeypatch):
    monkeypatch.setattr(batching, "PATIENCE", 5.0)  # that a busy machine may need to start all threads
    batcher = Batcher(processors)
    settings = [{"guidance": 0.0}, {"top_k": 3}, {}, {"temperature": 0.7}]
    calls = [lambda i=i: model.sample([i % 2], seed=i, **settings[i % 4]) for i in range(8)]
    together = at_once(batcher, calls)
    assert is_idle(batcher)
    assert sum(len(step) for step in steps) == 8 * 3  # maps
    assert len(steps) == 3 * processors
    for call, found in zip(calls, together, strict=True):
        alone = call()
        assert all(torch.equal(a, b) for a, b in zip(alone.tokens, found.tokens, strict=True))
        torch.testing.assert_close(alone.pixels, found.pixels, rtol=0, atol=1e-5)


def test_the_coarsest_scale_goes_first_and_in_it_the_oldest(model, steps):
    batcher = Batcher(1, tokens=32)  # two images at the finest scale
    with ThreadPoolExecutor(12) as pool:
        for i in range(12):  # one after another, while others are drawn
            pool.submit(at_once, batcher, [lambda i=i: model.sample([0], seed=i, batch_size=1)])
    assert is_idle(batcher)
    areas = model.tokenizer.quantizer.schedule.areas
    finished: list[int] = []
    for step in steps:
        (k,) = {drawing.canvas.scales for drawing in step}
        assert len(step) == 1 or len(step) * areas[k] <= 32
        if k == 2:
            finished += [drawing.sampler.seed for drawing in step]
    assert sorted(finished) == list(range(12))


def test_who_leaves_or_fails_disturbs_nobody(model):
    batcher, rng = Batcher(2), random.Random(0)

    def leaves_after(scale):
        def on_scale(k, scales, preview):
            preview()
            if k == scale:
                raise Left

        return lambda: model.sample([1], seed=5, guidance=0.0, on_scale=on_scale)

    with torch.no_grad():
        model.generator.class_embed.weight[-1] = torch.nan  # of no class, which only guided drawings need
    calls, kinds = [], []
    for i in range(60):
        kind = rng.choice(["leaves", "fails", "scores", "draws"])
        kinds.append(kind)
        calls.append(
            {
                "leaves": leaves_after(rng.randrange(3)),
                "fails": lambda: model.sample([0], seed=5),
                "scores": lambda: model.classify(torch.full((1, 3, 8, 8), 0.4)).ids,
                "draws": lambda i=i: model.sample([i % 2], seed=i, guidance=0.0),
            }[kind]
        )
    for start in range(0, 60, 20):
        results = at_once(batcher, calls[start : start + 20])
        for i, (kind, found) in enumerate(zip(kinds[start : start + 20], results, strict=True), start):
            if kind == "draws":
                assert torch.equal(found.tokens[-1], model.sample([i % 2], seed=i, guidance=0.0).tokens[-1])
            elif kind == "scores":
                assert found in ([0], [1])
            else:
                assert isinstance(found, Left if kind == "leaves" else FloatingPointError)
    assert is_idle(batcher)


def test_a_check_stops_a_call_before_its_next_map_or_turn(model):
    batcher = Batcher(1)
    checks = 0

    def check():
        nonlocal checks
        checks += 1
        if checks == 3:
            raise Left

    with pytest.raises(Left), batcher.joined(check):
        model.sample([0], seed=1)
    with pytest.raises(Left), batcher.joined(lambda: (_ for _ in ()).throw(Left)):
        model.classify(torch.full((1, 3, 8, 8), 0.4))
    assert is_idle(batcher)


def test_an_error_of_a_step_reaches_all_who_were_in_it(model, monkeypatch):
    def broken(drawings):
        raise RuntimeError("the processor is on fire")

    monkeypatch.setattr(batching, "draw_together", broken)
    batcher = Batcher(2)
    results = at_once(batcher, [lambda: model.sample([0], seed=1)] * 5)
    assert [str(error) for error in results] == ["the processor is on fire"] * 5
    assert is_idle(batcher)
