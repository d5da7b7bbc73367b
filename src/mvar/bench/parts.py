"""Which part of a model is at work: hooks tell a ledger when one begins and ends.

Parts are attention, mamba, mlp, adaln, head, decoder, and sampling for all the rest.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mvar.generator.block import Block
from mvar.sampling.engine import Sampler

PARTS = ("attention", "mamba", "mlp", "adaln", "head", "sampling", "decoder")


class Place(NamedTuple):
    """A part of the work, and the scale that it was done for; None where it is done once for all."""

    part: str
    scale: int | None


class Ledger:
    """Knows the part and the scale at work; `charge` is called whenever either is about to change."""

    def __init__(self) -> None:
        self._parts = ["sampling"]
        self._scale: int | None = None

    @property
    def place(self) -> Place:
        """What is at work now."""
        return Place(self._parts[-1], self._scale)

    def charge(self) -> None:
        """Write down what was done since the last call."""

    def enter(self, part: str) -> None:
        """A part begins, inside the one so far."""
        self.charge()
        self._parts.append(part)

    def leave(self) -> None:
        """The part ends; the one around it goes on."""
        self.charge()
        self._parts.pop()

    def at(self, scale: int | None) -> None:
        """What follows is done for this scale."""
        self.charge()
        self._scale = scale

    @contextmanager
    def watching(self, sampler: Sampler) -> Iterator[None]:
        """Follow the parts of a model at work."""
        parts: list[tuple[nn.Module, str]] = [(sampler.generator.head, "head")]
        for block in sampler.generator.each_block():
            parts.extend(_parts_of(block))
        with ExitStack() as stack:
            for module, part in parts:
                stack.callback(module.register_forward_pre_hook(self._on_enter(part)).remove)
                stack.callback(module.register_forward_hook(self._on_leave).remove)
            yield

    def _on_enter(self, part: str) -> Callable[..., None]:
        return lambda *_: self.enter(part)

    def _on_leave(self, *_: Any) -> None:
        self.leave()


def _parts_of(block: Block) -> Iterator[tuple[nn.Module, str]]:
    yield block, "adaln"  # what is left of a block: normalisation, scales, shifts and gates
    for module, part in ((block.attention, "attention"), (block.mamba, "mamba"), (block.mlp, "mlp")):
        if module is not None:
            yield module, part


class Stopwatch(Ledger):
    """Seconds of each place."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[Place, float] = defaultdict(float)
        self._since = time.perf_counter()

    def charge(self) -> None:
        """Book the time since the last call."""
        now = time.perf_counter()
        self.seconds[self.place] += now - self._since
        self._since = now


class Work(NamedTuple):
    """One matrix product or convolution with weights."""

    place: Place
    flop: int
    weight_bytes: int


class WorkCounter(TorchDispatchMode):
    """Writes down every matrix product and convolution with weights that runs under it, on any device.

    Products of activations with each other (attention, the scan) and depthwise convolutions are left out: the floor
    counts them as free.
    """

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger
        self.work: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        if func in (aten.mm.default, aten.addmm.default):
            left, weight = args[-2:]
            self._book(2 * left.shape[0] * weight.numel(), weight)
        elif func is aten.convolution.default and args[8] == 1:
            weight = args[1]
            self._book(2 * out.numel() * weight[0].numel(), weight)
        return out

    def _book(self, flop: int, weight: Tensor) -> None:
        self.work.append(Work(self.ledger.place, flop, weight.numel() * weight.element_size()))
