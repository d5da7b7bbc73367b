"""Frozen networks by name."""

from typing import Protocol

import torch
from torch import Tensor


class FeatureNetwork(Protocol):
    """A frozen network that looks at images, a torch module."""

    def to(self, device: torch.device) -> "FeatureNetwork":
        """Moved to a device."""

    @property
    def channel_weights(self) -> list[Tensor] | None:
        """How much each channel of each map counts in a perceptual distance, (F,) a map; None: all the same."""

    def maps(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Maps (B, F, h, w) of several stages, fine to coarse, of RGB pixels in [0, 1]."""


def find_network(name: str) -> FeatureNetwork:
    """The network of this name."""
    from mvar.features.effnet import EffNetLite0

    if name != "effnet-lite0":
        raise ValueError(f"perceptual_network = {name!r}: give effnet-lite0")
    return EffNetLite0()
