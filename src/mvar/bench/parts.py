"""Which part of a model is at work: hooks notify a ledger when one begins and ends.

Parts are attention, mamba, mlp, adaln, head, decoder, and sampling for all the rest.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mvar.sampling.engine import Sampler

PARTS = ("attention", "mamba", "mlp", "adaln", "head", "sampling", "decoder")


class Phase(NamedTuple):
    """A part at work on a scale; None for work that is done once for all scales."""

    part: str
    scale: int | None


class Ledger:
    """Knows the part and the scale at work; `charge` is called whenever either is about to change."""

    def __init__(self) -> None:
        self._parts = ["sampling"]
        self._scale: int | None = None

    @property
    def phase(self) -> Phase:
        """What is at work now."""
        return Phase(self._parts[-1], self._scale)

    def charge(self) -> None:
        """Record the work since the last call."""

    def enter(self, part: str) -> None:
        """A part begins, inside the current one."""
        self.charge()
        self._parts.append(part)

    def leave(self) -> None:
        """The part ends; the one around it continues."""
        self.charge()
        self._parts.pop()

    def at(self, scale: int | None) -> None:
        """What follows is done for this scale."""
        self.charge()
        self._scale = scale

    @contextmanager
    def watching(self, sampler: Sampler) -> Iterator[None]:
        """Follow the parts of a model at work."""
        parts: list[tuple[nn.Module | None, str]] = [(sampler.generator.head, "head")]
        for block in sampler.generator.each_block():
            # A block itself is what its parts leave over: normalisation, scales, shifts and gates.
            parts += [(block, "adaln"), (block.attention, "attention"), (block.mamba, "mamba"), (block.mlp, "mlp")]
        with ExitStack() as stack:
            for module, part in parts:
                if module is not None:
                    entering = module.register_forward_pre_hook(lambda *_, part=part: self.enter(part))
                    stack.callback(entering.remove)
                    stack.callback(module.register_forward_hook(lambda *_: self.leave()).remove)
            yield


class Stopwatch(Ledger):
    """Seconds of each phase."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[Phase, float] = defaultdict(float)
        self._since = time.perf_counter()

    def charge(self) -> None:
        """Add the time since the last call."""
        now = time.perf_counter()
        self.seconds[self.phase] += now - self._since
        self._since = now


class Work(NamedTuple):
    """One matrix product or convolution with weights."""

    phase: Phase
    flop: int
    weight_bytes: int


class WorkCounter(TorchDispatchMode):
    """Records every matrix product and convolution with weights that runs under it, on any device.

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
            self._add(2 * left.shape[0] * weight.numel(), weight)
        elif func is aten.convolution.default and args[8] == 1:
            weight = args[1]
            self._add(2 * out.numel() * weight[0].numel(), weight)
        return out

    def _add(self, flop: int, weight: Tensor) -> None:
        self.work.append(Work(self.ledger.phase, flop, weight.numel() * weight.element_size()))
