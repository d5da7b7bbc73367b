"""Recordings, with a stand-in for CUDA's that does the work again into the same memory: they never ran on a GPU."""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from mvar.ops.noise import uniform_at
from mvar.sampling import graphs
from mvar.sampling.config import SamplingSettings
from mvar.sampling.engine import Canvas, Sampler
from mvar.sampling.export import writing
from mvar.sampling.graphs import Graphs, padded

pytest.importorskip("triton")

USUAL = SamplingSettings(guidance=2.0, top_k=20, top_p=0.9)
LABELS, INDEX = torch.tensor([0, 2, 1]), (5, 6, 2**64 - 1)


class Again:
    """A recording whose replay runs the function again, and puts the results where they were."""

    made = 0

    def __init__(self, work, place):
        Again.made += 1
        self.work, self.result = work, work()
        self.places = self.tensors(self.result)

    @staticmethod
    def warm_up(work, place):
        work()

    @staticmethod
    def tensors(result):
        if not isinstance(result, Canvas):
            return [result]
        state = [leaf for leaf in tree_leaves(result.state.blocks) if leaf is not None]
        return [*result.modulation.blocks, result.f_hat_BZHW, *state, *result.tokens, *result.finite.values()]

    def replay(self):
        with torch.no_grad():
            for place, new in zip(self.places, self.tensors(self.work()), strict=True):
                place.copy_(new)
        return self.result


@pytest.fixture(autouse=True)
def recording(monkeypatch):
    Again.made = 0
    monkeypatch.setattr(graphs, "Recording", Again)
    monkeypatch.setattr(graphs, "can_record", lambda _: True)
    monkeypatch.setattr(graphs, "Place", lambda device: nullcontext())
    # Triton's interpreter would take most of the time; tests/ops/test_gpu.py compares the kernel with these numbers.
    monkeypatch.setattr("mvar.ops.gpu.noise.gumbel_of", gumbel_of)


def gumbel_of(keys, stream, shape, at):
    """The kernel's numbers by PyTorch's operations."""
    return -(-torch.log1p(-uniform_at(keys, stream, shape, at))).log()


def same(out, expected):
    assert all(torch.equal(a, b) for a, b in zip(out.tokens or (), expected.tokens or (), strict=True))
    torch.testing.assert_close(out.pixels, expected.pixels, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "mixers", [{}, {"attention": "global", "mamba": False}, {"attention": "recent", "scan": "bidirectional"}]
)
@pytest.mark.parametrize("looked_at", [False, True])
def test_a_recording_draws_other_images_as_they_are_drawn_without_it(build, mixers, looked_at):
    networks, model = build(**mixers), Graphs()
    previews, calls = [], []

    def on_scale(k, scales, preview):
        previews.append(preview)
        calls.append((k, scales))

    for seed, labels, index in ((3, LABELS, INDEX), (3, LABELS, INDEX), (2**63 + 1, LABELS.flip(0), (1, 0, 7))):
        previews.clear()
        out = Sampler(*networks, seed, USUAL, model).sample(labels, index, on_scale if looked_at else None)
        same(out, Sampler(*networks, seed, USUAL).sample(labels, index))
    assert Again.made == (5 if looked_at else 2)  # the second time: four scales or all at once, and the decoder
    if looked_at:
        assert calls[-4:] == [(0, 4), (1, 4), (2, 4), (3, 4)]
        for k, preview in enumerate(previews, start=1):  # asked for afterwards
            torch.testing.assert_close(preview(), networks[0].decode(out.tokens[:k]), rtol=0, atol=1e-4)


def test_smooth_samples_and_settings_of_each_scale_are_recorded_too(build):
    networks, model = build(), copy.deepcopy(Graphs())
    by_scale = SamplingSettings(guidance=[0, 1, 2, 0], top_k=[5, 6, 7, 8])
    for settings in (SamplingSettings(top_k=20, smooth=True), by_scale):
        for seed in (1, 1, 2):
            out = Sampler(*networks, seed, settings, model).sample(LABELS, INDEX)
            same(out, Sampler(*networks, seed, settings).sample(LABELS, INDEX))
    assert Again.made == 4


def test_continued_canvases_are_recorded_too_and_batches_share_a_few_sizes(build):
    networks, model = build(), Graphs()
    for recordings in (model, model, None):
        sampler = Sampler(*networks, 1, USUAL, recordings)
        stem = sampler.draw(sampler.draw(sampler.start(torch.tensor([1]), [0])))
        outs = [sampler.finish(stem.fork(range(n))) for n in (3, 4)]
    same(sampler.finish(stem.fork(range(3))), outs[0])
    assert Again.made == 2
    assert [padded(n) for n in (1, 2, 3, 5, 9, 33, 64, 65, 100)] == [1, 2, 4, 8, 16, 40, 64, 65, 100]


@pytest.mark.parametrize("change", ["settings", "weights", "inside"])
def test_what_a_recording_does_not_fit_is_drawn_without_it(build, change):
    tokenizer, generator = build()
    model, settings = Graphs(), USUAL
    for _ in range(2):
        Sampler(tokenizer, generator, 3, USUAL, model).sample(LABELS, INDEX)
    if change == "settings":
        settings = SamplingSettings(guidance=0.5, top_k=20)
    elif change == "weights":
        generator.head.weight.data = 2 * generator.head.weight.data
    sampler, made = Sampler(tokenizer, generator, 3, settings, model), Again.made
    found = []
    if change == "inside":  # a call from on_scale must not write over what is being drawn
        sampler.sample(LABELS, INDEX, lambda *_: found.append(sampler.sample(LABELS, INDEX)))
        sampler.sample(LABELS, INDEX, lambda *_: found.append(sampler.sample(LABELS, INDEX)))
        made = Again.made
    found.append(sampler.sample(LABELS, INDEX))
    assert Again.made == made
    for out in found:
        same(out, Sampler(tokenizer, generator, 3, settings).sample(LABELS, INDEX))
    if change == "weights":
        generator.head.weight.data /= 2


def test_flags_are_those_of_the_canvas_that_is_drawn(build):
    networks, model = build(), Graphs()
    sampler = Sampler(*networks, 3, USUAL, model)

    def finish(fine):
        canvas = sampler.draw(sampler.start(LABELS, INDEX))
        return sampler.finish(replace(canvas, finite={0: torch.tensor(fine)}))

    for fine in (True, False, True, False):  # the second is recorded
        if fine:
            finish(fine)
        else:
            with pytest.raises(FloatingPointError, match=r"^scale 0 "):
                finish(fine)
    assert len(model) == 1


def test_an_error_of_on_scale_is_the_caller_s(build):
    networks, model, calls = build(), Graphs(), []

    def fails(k, scales, preview):
        calls.append(k)
        if len(calls) > 4:
            raise RuntimeError("my own")

    sampler = Sampler(*networks, 3, USUAL, model)
    sampler.sample(LABELS, INDEX, fails)
    with pytest.raises(RuntimeError, match=r"^my own$"):
        sampler.sample(LABELS, INDEX, fails)
    assert calls == [0, 1, 2, 3, 0]
    assert not model.failed
    calls.clear()
    same(sampler.sample(LABELS, INDEX, fails), Sampler(*networks, 3, USUAL).sample(LABELS, INDEX))


def test_threads_that_share_a_model_draw_their_own_images(build):
    networks, model = build(), Graphs()
    alone = [Sampler(*networks, seed, USUAL).sample(LABELS, INDEX) for seed in range(6)]
    for _ in range(2):
        Sampler(*networks, 0, USUAL, model).sample(LABELS, INDEX)
    with ThreadPoolExecutor(3) as pool:
        outs = list(pool.map(lambda seed: Sampler(*networks, seed, USUAL, model).sample(LABELS, INDEX), range(6)))
    for out, expected in zip(outs, alone, strict=True):
        same(out, expected)


def test_without_room_or_support_images_are_drawn_as_before(build, monkeypatch):
    networks, model = build(), Graphs()
    sampler, expected = Sampler(*networks, 3, USUAL, model), Sampler(*networks, 3, USUAL).sample(LABELS, INDEX)

    def raising(error):
        def record(*_):
            raise error

        monkeypatch.setattr(Again, "__init__", record)

    same(sampler.sample(LABELS, INDEX), expected)
    raising(torch.OutOfMemoryError("there is no room"))
    same(sampler.sample(LABELS, INDEX), expected)
    assert not model.failed
    sampler = Sampler(*networks, 3, USUAL, Graphs())
    same(sampler.sample(LABELS, INDEX), expected)
    raising(RuntimeError("operation not permitted\nwhen stream is capturing"))
    with pytest.warns(
        UserWarning, match="^CUDA graphs are not used: operation not permitted when stream is capturing$"
    ):
        same(sampler.sample(LABELS, INDEX), expected)
    same(sampler.sample(LABELS, INDEX), expected)  # without another warning


def test_a_variable_switches_recordings_off(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(graphs, "runs_kernels", lambda *_: True)
    on_gpu = SimpleNamespace(is_cuda=True)
    assert graphs.can_record(on_gpu)
    assert not graphs.can_record(torch.zeros(1))
    monkeypatch.setenv("MVAR_GRAPHS", "off")
    assert not graphs.can_record(on_gpu)
    monkeypatch.setenv("MVAR_GRAPHS", "0")
    with pytest.raises(ValueError, match=r"^MVAR_GRAPHS = '0': must be on or off$"):
        graphs.can_record(torch.zeros(1))


def test_the_next_batch_is_drawn_while_a_gpu_s_last_one_is_written():
    may_end, done = Event(), []

    def slow():
        assert may_end.wait(10)
        done.append("first")

    with writing(torch.device("cuda")) as write:
        write(slow)  # does not wait
        assert not done
        may_end.set()
        write(lambda: done.append("second"))
    assert done == ["first", "second"]
    with writing(torch.device("cpu")) as write:
        write(lambda: done.append("at once"))
        assert done[-1] == "at once"

    def full():
        raise OSError("no space is left")

    with pytest.raises(OSError, match="no space"), writing(torch.device("cuda")) as write:
        write(full)
