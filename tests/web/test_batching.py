"""Requests in many threads: they share steps, get what they would get alone, and nobody waits for ever."""

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from time import sleep
from types import SimpleNamespace

import pytest
import torch

from mvar.model import load
from mvar.sampling.concurrency import turn
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
    """Someone no longer waits for an answer."""


def at_once(batcher, calls):
    """Results, or exceptions, of calls that begin at the same time in threads that share a batcher."""
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
    return batcher._joined == batcher._settled == batcher._busy == len(batcher._waiting) == 0


@pytest.mark.parametrize("processors", [1, 2])
def test_requests_share_steps_and_get_what_they_would_get_alone(model, steps, processors, monkeypatch):
    monkeypatch.setattr(batching, "GRACE", 5.0)  # that a busy machine may need to start all threads
    batcher = Batcher(processors)
    settings = [{"guidance": 0.0}, {"top_k": 3}, {}, {"temperature": 0.7}]
    calls = [lambda i=i: model.sample([i % 2], seed=i, **settings[i % 4]) for i in range(8)]
    together = at_once(batcher, calls)
    assert is_idle(batcher)
    assert sum(len(step) for step in steps) == 8 * 3  # maps
    assert len(steps) == 3 if processors == 1 else len(steps) <= 8  # a group that is ahead may split the other
    for call, found in zip(calls, together, strict=True):
        alone = call()
        assert all(torch.equal(a, b) for a, b in zip(alone.tokens, found.tokens, strict=True))
        torch.testing.assert_close(alone.pixels, found.pixels, rtol=0, atol=1e-5)


def test_the_coarsest_scale_goes_first_and_in_it_the_oldest(monkeypatch, until):
    batcher = Batcher(1, tokens=32)  # two images at the finest scale
    sampler = SimpleNamespace(generator=SimpleNamespace(schedule=SimpleNamespace(areas=[1, 4, 16])))
    steps: list[list[tuple[int, int]]] = []

    def drawn(drawings):
        steps.append([drawing.named for drawing in drawings])
        return drawings

    monkeypatch.setattr(batching, "draw_together", drawn)
    with ThreadPoolExecutor(5) as pool, batcher.turn():  # which keeps the processor until all are there
        for i, (k, age) in enumerate([(2, 5), (1, 7), (2, 1), (1, 3), (2, 9)]):
            canvas = SimpleNamespace(scales=k, index=[0])
            pool.submit(batcher.draw, SimpleNamespace(sampler=sampler, canvas=canvas, named=(k, age)), age)
            until(lambda i=i: len(batcher._waiting) == i + 1)
    assert steps == [[(1, 3), (1, 7)], [(2, 1), (2, 5)], [(2, 9)]]
    assert is_idle(batcher)


def test_drawing_goes_on_beside_those_who_take_turn_after_turn(model, until):
    batcher, turns, done = Batcher(1), [], Event()

    def classify():
        with batcher.joined():
            while not done.is_set() and len(turns) < 300:
                with turn():
                    turns.append(len(batcher._waiting))
                    sleep(0.005)

    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(classify) for _ in range(3)]
        until(lambda: max(turns, default=0) == 2)  # all are at it
        before = len(turns)
        with batcher.joined():
            model.sample([0], seed=1)
        taken = len(turns) - before
        done.set()
    assert taken < 60  # of the other three, for three maps and the decoding
    assert all(other.result() is None for other in others)
    assert is_idle(batcher)


def test_all_free_processors_are_used(until):
    batcher = Batcher(2)

    def meets(barrier):
        with batcher.turn():
            barrier.wait(5)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            barrier = Barrier(2)
            with batcher.turn(), batcher.turn():
                both = [pool.submit(meets, barrier) for _ in range(2)]
                until(lambda: len(batcher._waiting) == 2)
            assert [each.result() for each in both] == [None, None]


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
