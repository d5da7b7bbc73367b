"""CUDA graphs: the work from a canvas to its pixels, recorded once, then launched as a whole.

A GPU runs the kernels of a small batch faster than Python can launch them. A recording is used from the second time on
that a batch of this size is drawn with these settings: recording takes longer than drawing once.

The environment variable MVAR_GRAPHS = off switches recordings off.
"""

import copy
import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mvar.machine import send
from mvar.ops.dispatch import NOISE, mode, runs_kernels
from mvar.ops.noise import key_bits

if TYPE_CHECKING:
    from mvar.sampling.engine import Canvas, OnScale, Sampler

T = TypeVar("T")
MOST = 8  # recordings of a model; they share their memory for what is between input and output
MOST_SEEN = 64  # kinds of batches that are remembered until they come again
LARGEST_PADDED = 64  # images; up to so many a batch is filled up to a size that others have too


class Place:
    """Where a model's recordings are made: one stream and one pool of memory, on its device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream, self.pool = device, torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __enter__(self) -> None:
        # Torch leaves a failed recording on its stream; `stream` returns to the present one in any case.
        self._entered = ExitStack()
        self._entered.enter_context(torch.cuda.device(self.device))
        self._entered.enter_context(torch.cuda.stream(torch.cuda.current_stream(self.device)))

    def __exit__(self, *error: object) -> None:
        self._entered.close()


class Recording(Generic[T]):
    """What a function does on the GPU, to be done again; its results lie where they were."""

    def __init__(self, work: Callable[[], T], place: Place) -> None:
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, place.pool, place.stream, capture_error_mode="thread_local"):
            self.result = work()

    @staticmethod
    def warm_up(work: Callable[[], object], place: Place) -> None:
        """Do the work once without recording it: kernels are compiled and libraries choose theirs, which a recording
        may not."""
        place.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(place.stream):
            work()
        torch.cuda.current_stream().wait_stream(place.stream)

    def replay(self) -> T:
        """The results, until the next replay of any recording of this place."""
        self.graph.replay()
        return self.result


class Graphs:
    """The recordings of one model."""

    def __init__(self) -> None:
        self._recorded: OrderedDict[tuple[Any, ...], Finishing] = OrderedDict()  # least recently used first
        self._seen: set[tuple[Any, ...]] = set()
        self._refused: set[tuple[Any, ...]] = set()  # kinds that did not fit into memory
        self._place: Place | None = None
        self._lock = Lock()
        self.failed = False  # after an error of a recording none is made again

    def __len__(self) -> int:
        return len(self._recorded)

    def __reduce__(self) -> "tuple[type[Graphs], tuple[()]]":
        return Graphs, ()  # a copy of a model records for itself

    def finish(
        self, sampler: "Sampler", canvas: "Canvas", on_scale: "OnScale | None"
    ) -> "tuple[Canvas, Tensor] | None":
        """All missing maps, and the decoder's output; None where nothing is recorded, or while another call is running.

        Arguments are those of `Sampler.finish`.
        """
        if self.failed or not can_record(canvas.f_hat_BZHW):
            return None
        key = (padded(len(canvas.index)), on_scale is not None, *_identity(sampler, canvas))
        if not self._lock.acquire(blocking=False):  # another thread, or a call from inside `on_scale`
            return None
        try:
            if key not in self._seen:
                self._seen = {*self._seen, key} if len(self._seen) < MOST_SEEN else {key}
                return None
            if key in self._refused or (key not in self._recorded and not self._record(key, sampler, canvas)):
                return None
            self._recorded.move_to_end(key)
            return self._recorded[key].run(sampler, canvas, on_scale)
        finally:
            self._lock.release()

    def _record(self, key: tuple[Any, ...], sampler: "Sampler", canvas: "Canvas") -> bool:
        """Record this kind of batch; false, and a warning, where that is not possible."""
        size, each, *_ = key
        for other in [other for other in self._recorded if other[-1] != key[-1]]:  # of weights that are gone
            del self._recorded[other]
        while len(self._recorded) >= MOST:
            self._recorded.popitem(last=False)
        if not self._recorded:  # a pool ends with its last recording
            self._place = None
        try:
            if self._place is None:
                self._place = Place(canvas.f_hat_BZHW.device)
            with self._place:
                self._recorded[key] = Finishing(sampler, canvas, size, each, self._place)
            return True
        except torch.OutOfMemoryError:  # without the recordings there may be room
            self._refused.add(key)
        except RuntimeError as error:
            self.failed = True
            warnings.warn(f"CUDA graphs are not used: {' '.join(str(error).split())[:200]}", stacklevel=2)
        self._recorded.clear()
        self._place = None
        return False


class Finishing:
    """`Sampler.finish` of a batch of one size, recorded: in one piece, or in one for each scale."""

    def __init__(self, sampler: "Sampler", canvas: "Canvas", size: int, each: bool, place: Place) -> None:
        self.place = place
        self.given = canvas.select(_rows(len(canvas.index), size))  # copies, which each run fills
        self.keys = _keys(sampler, self.given)
        self.weights = _weights(sampler)  # kept, so that no other tensor gets their place in memory
        sampler = copy.copy(sampler)
        sampler.noise = self._noise
        draw, decoded = partial(_drawn, sampler), sampler.tokenizer.decoded
        first, last = canvas.scales, sampler.scales
        after = self.given = replace(self.given, tokens=(), finite={})
        self.parts: list[Recording[Canvas]] = []
        with torch.no_grad():
            Recording.warm_up(lambda: decoded(draw(self.given, range(first, last)).f_hat_BZHW), place)
            for scales in [range(k, k + 1) for k in range(first, last)] if each else [range(first, last)]:
                self.parts.append(Recording(partial(draw, after, scales), place))
                after = self.parts[-1].result
            self.decoded = Recording(partial(decoded, after.f_hat_BZHW), place)
        for part in self.parts:  # only the next part needs its state
            part.result = replace(part.result, state=self.given.state, modulation=self.given.modulation)

    def run(self, sampler: "Sampler", canvas: "Canvas", on_scale: "OnScale | None") -> "tuple[Canvas, Tensor]":
        """As `Graphs.finish`; what it returns is copied from where the next run writes."""
        B = len(canvas.index)
        filled = canvas if len(self.given.index) == B else canvas.select(_rows(B, len(self.given.index)))
        torch._foreach_copy_(_tensors(self.given), _tensors(filled))
        self.keys.copy_(_keys(sampler, filled))
        after = canvas
        for k, part in enumerate(self.parts, start=canvas.scales):
            with self.place:
                drawn = part.replay()
            tokens = (*canvas.tokens, *(maps[:B].clone() for maps in drawn.tokens))
            finite = canvas.finite | {scale: flag.clone() for scale, flag in drawn.finite.items()}
            after = replace(canvas, f_hat_BZHW=drawn.f_hat_BZHW[:B].clone(), tokens=tokens, finite=finite)
            if on_scale is not None:
                on_scale(k, sampler.scales, partial(sampler.pixels, after))
        with self.place:
            return after, self.decoded.replay()[:B].clone()

    def _noise(self, index: Sequence[int], k: int, shape: Sequence[int], at: Tensor | None, _: torch.device) -> Tensor:
        from mvar.ops.gpu.noise import gumbel_of

        return gumbel_of(self.keys, k, shape, at)


def _drawn(sampler: "Sampler", canvas: "Canvas", scales: range) -> "Canvas":
    for _ in scales:
        canvas = sampler.draw(canvas)
    return canvas


def _keys(sampler: "Sampler", canvas: "Canvas") -> Tensor:
    return send(key_bits(sampler.seed, canvas.index), canvas.f_hat_BZHW.device)


def _tensors(canvas: "Canvas") -> list[Tensor]:
    """What the next map is drawn from."""
    modulation, leaves = canvas.modulation, tree_leaves(canvas.state.blocks)
    state = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return [*modulation.blocks, modulation.head_B2C, modulation.class_embedding_BC, *state, canvas.f_hat_BZHW]


def _weights(sampler: "Sampler") -> list[Tensor]:
    return [p.data for network in (sampler.tokenizer, sampler.generator) for p in network.parameters()]


def _identity(sampler: "Sampler", canvas: "Canvas") -> tuple[Any, ...]:
    """What a recording depends on besides the numbers in the canvas and the seed; last, where the weights lie."""
    ways = (
        mode(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(canvas.f_hat_BZHW.device.type),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,  # type: ignore[attr-defined]
    )
    places = tuple(weight.data_ptr() for weight in _weights(sampler))
    return canvas.scales, canvas.guided, repr(sampler.settings), ways, places


def _rows(B: int, size: int) -> Tensor:
    """The images of a batch, the last one repeated to fill it up."""
    return torch.arange(size).clamp(max=B - 1)


def padded(B: int) -> int:
    """The size that a batch of B images is filled up to: a power of two up to 8, a multiple of 8 up to 64."""
    if B > LARGEST_PADDED:
        return B
    return 1 << (B - 1).bit_length() if B <= 8 else -(-B // 8) * 8


def can_record(x: Tensor) -> bool:
    """Whether work on this tensor's device can be recorded: on CUDA, with noise that a kernel makes.

    Raises ValueError for an unknown value of MVAR_GRAPHS.
    """
    wanted = os.environ.get("MVAR_GRAPHS") or "on"
    if wanted not in ("on", "off"):
        raise ValueError(f"MVAR_GRAPHS = {wanted!r}: must be on or off")
    return x.is_cuda and wanted == "on" and runs_kernels(x, NOISE)
