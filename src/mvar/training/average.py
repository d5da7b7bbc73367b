"""The moving average of weights, which samples and reconstructs better than the last step's own.

Source: Polyak & Juditsky 1992; the warm-up of its decay is the one customary for generative models.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """An exponential moving average of a module's trainable parameters, kept in their own dtype and place."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Args:
        module: what is trained; it keeps its own weights outside of `applied`.
        decay: weight of the past at each update, less in the first steps; 0 keeps no average.
        """
        self.decay = decay
        self._live = {name: p for name, p in module.named_parameters() if p.requires_grad} if decay else {}
        self._average = {name: p.detach().clone() for name, p in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update `step` (from 0); the decay is at most (1 + step) / (10 + step)."""
        if self._live:
            weight = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self._average.values()), list(self._live.values()), weight)

    @torch.no_grad()
    def restart(self, name: str, rows: Tensor) -> None:
        """Forget the past of a parameter's rows that were moved."""
        if name in self._live:
            self._average[name][rows] = self._live[name][rows]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average into the module for as long as the context lasts."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def take(self) -> None:
        """Put the average into the module for good."""
        self._exchange()
        self._live, self._average = {}, {}

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, live in self._live.items():
            kept = live.detach().clone()
            live.copy_(self._average[name])
            self._average[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The averages by parameter name, live; a checkpoint fills them."""
        return self._average
