"""CUDA graphs: the work from a canvas to its pixels, recorded once and launched as one thing ever after.

A GPU runs the kernels of a small batch faster than Python can launch them. A recording is used from the second time on
that a batch of this size is drawn with these settings: recording takes longer than drawing once.

The environment variable MVAR_GRAPHS = off switches recordings off.
"""

import copy
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mvar.machine import send
from mvar.ops.dispatch import NOISE, mode, runs_kernels

if TYPE_CHECKING:
    from mvar.sampling.engine import Canvas, OnScale, Sampler

T = TypeVar("T")
MOST = 8  # recordings of a model; they share their memory for what is between input and output
MOST_SEEN = 64  # kinds of batches that are remembered until they come again
LARGEST_PADDED = 64  # images; up to so many a batch is filled up to a power of two, so that few sizes are recorded


class Recording(Generic[T]):
    """What a function does on the current CUDA device, to be done again; its results lie where they were."""

    def __init__(self, work: Callable[[], T], pool: Any) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.result = work()

    @staticmethod
    def warm_up(work: Callable[[], object]) -> None:
        """Do the work once without recording it: kernels are compiled and libraries choose theirs, which a recording
        may not."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
        torch.cuda.current_stream().wait_stream(stream)

    def replay(self) -> T:
        """The results, until the next replay of any recording of this pool."""
        self.graph.replay()
        return self.result


class Graphs:
    """The recordings of one model."""

    def __init__(self) -> None:
        self._recorded: OrderedDict[tuple[Any, ...], Finishing] = OrderedDict()  # least recently used first
        self._seen: set[tuple[Any, ...]] = set()
        self._pool: Any = None
        self._busy = self._failed = False

    def __len__(self) -> int:
        return len(self._recorded)

    def __reduce__(self) -> "tuple[type[Graphs], tuple[()]]":
        return Graphs, ()  # a copy of a model records for itself

    def finish(
        self, sampler: "Sampler", canvas: "Canvas", on_scale: "OnScale | None"
    ) -> "tuple[Canvas, Tensor] | None":
        """All missing maps, and the decoder's output, which both hold until the next call; None where nothing is
        recorded. Arguments are those of `Sampler.finish`."""
        if self._busy or self._failed or not can_record(canvas.f_hat_BZHW):  # busy: a call from inside `on_scale`
            return None
        size = padded(len(canvas.index))
        key = (size, on_scale is not None, *_identity(sampler, canvas))
        if key not in self._seen:
            self._seen = {*self._seen, key} if len(self._seen) < MOST_SEEN else {key}
            return None
        self._busy, device = True, canvas.f_hat_BZHW.device
        try:
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                if key not in self._recorded:
                    self._record(key, sampler, canvas, size, on_scale is not None)
                self._recorded.move_to_end(key)
                return self._recorded[key].run(sampler, canvas, on_scale)
        except torch.OutOfMemoryError:  # of the recording; without it there may be room
            self._recorded.clear()
        except RuntimeError as error:
            self._failed = True
            warnings.warn(f"CUDA graphs are not used: {' '.join(str(error).split())[:200]}", stacklevel=2)
        finally:
            self._busy = False
        return None

    def _record(self, key: tuple[Any, ...], sampler: "Sampler", canvas: "Canvas", size: int, each: bool) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        while len(self._recorded) >= MOST:
            self._recorded.popitem(last=False)
        self._recorded[key] = Finishing(sampler, canvas, size, each, self._pool)


class Finishing:
    """`Sampler.finish` of a batch of one size, recorded: in one piece, or in one for each scale."""

    def __init__(self, sampler: "Sampler", canvas: "Canvas", size: int, each: bool, pool: Any) -> None:
        self.given = canvas.select(_rows(len(canvas.index), size))  # copies, which each run fills
        self.keys = _keys(sampler, self.given)
        self.weights = _weights(sampler)  # kept, so that no other tensor gets their place in memory
        sampler = copy.copy(sampler)
        sampler.noise = self._noise
        draw, decoded = partial(_drawn, sampler), sampler.tokenizer.decoded
        first, last = canvas.scales, sampler.scales
        after = replace(self.given, tokens=())
        self.parts: list[Recording[Canvas]] = []
        with torch.no_grad():
            Recording.warm_up(lambda: decoded(draw(self.given, range(first, last)).f_hat_BZHW))
            for scales in [range(k, k + 1) for k in range(first, last)] if each else [range(first, last)]:
                self.parts.append(Recording(partial(draw, after, scales), pool))
                after = self.parts[-1].result
            self.decoded = Recording(partial(decoded, after.f_hat_BZHW), pool)
        for part in self.parts:  # only the next part needs its state
            part.result = replace(part.result, state=self.given.state, modulation=self.given.modulation)

    def run(self, sampler: "Sampler", canvas: "Canvas", on_scale: "OnScale | None") -> "tuple[Canvas, Tensor]":
        """As `Graphs.finish`."""
        B = len(canvas.index)
        filled = canvas if len(self.given.index) == B else canvas.select(_rows(B, len(self.given.index)))
        torch._foreach_copy_(_tensors(self.given), _tensors(filled))
        self.keys.copy_(_keys(sampler, filled))
        shown = canvas
        for k, part in enumerate(self.parts, start=canvas.scales):
            after = part.replay()
            f_hat_BZHW, tokens = after.f_hat_BZHW[:B], (*canvas.tokens, *(maps[:B] for maps in after.tokens))
            shown = replace(canvas, f_hat_BZHW=f_hat_BZHW, tokens=tokens, finite=canvas.finite | after.finite)
            if on_scale is not None:
                so_far = replace(shown, f_hat_BZHW=f_hat_BZHW.clone())  # a preview may be asked for later
                on_scale(k, sampler.scales, partial(sampler.pixels, so_far))
        return shown, self.decoded.replay()[:B]

    def _noise(self, index: Sequence[int], k: int, shape: Sequence[int], at: Tensor | None, _: torch.device) -> Tensor:
        from mvar.ops.gpu.noise import gumbel_of

        return gumbel_of(self.keys, k, shape, at)


def _drawn(sampler: "Sampler", canvas: "Canvas", scales: range) -> "Canvas":
    for _ in scales:
        canvas = sampler.draw(canvas)
    return canvas


def _keys(sampler: "Sampler", canvas: "Canvas") -> Tensor:
    from mvar.ops.gpu.noise import keys

    return send(keys(sampler.seed, canvas.index), canvas.f_hat_BZHW.device)


def _tensors(canvas: "Canvas") -> list[Tensor]:
    """What the next map is drawn from."""
    modulation, leaves = canvas.modulation, tree_leaves(canvas.state.blocks)
    state = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [*modulation.blocks, modulation.head_B2C, modulation.class_embedding_BC, *state, canvas.f_hat_BZHW]


def _weights(sampler: "Sampler") -> list[Tensor]:
    return [p.data for network in (sampler.tokenizer, sampler.generator) for p in network.parameters()]


def _identity(sampler: "Sampler", canvas: "Canvas") -> tuple[Any, ...]:
    """What a recording depends on besides the numbers in the canvas and the seed."""
    places = tuple(weight.data_ptr() for weight in _weights(sampler))
    return canvas.scales, canvas.guided, repr(sampler.settings), mode(), places


def _rows(B: int, size: int) -> Tensor:
    """The images of a batch, the last one repeated to fill it up."""
    return torch.arange(size).clamp(max=B - 1)


def padded(B: int) -> int:
    """The size that a batch of B images is filled up to."""
    return 1 << (B - 1).bit_length() if B <= LARGEST_PADDED else B


def can_record(x: Tensor) -> bool:
    """Whether work on this tensor's device can be recorded: on CUDA, with noise that a kernel makes."""
    return x.is_cuda and os.environ.get("MVAR_GRAPHS") != "off" and runs_kernels(x, NOISE)
