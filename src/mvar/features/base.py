"""What all frozen feature networks share, and how they take published weights.

Shapes: B images, H W pixels, F channels of a map, h w its sides.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from mvar.ops.numerics import damage
from mvar.tensor_files import read_tensors


class FeatureNetwork(nn.Module):
    """A frozen network whose maps say how alike two images look; it stays in eval mode."""

    @property
    def channel_weights(self) -> list[Tensor] | None:
        """For each map, weights (F,) >= 0 of the squared differences of its unit features; None weighs all alike."""
        return None

    def maps(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Maps (B, F, h, w), fine to coarse, of RGB pixels in [0, 1], 16 or more a side; gradients reach the pixels."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)


class Extracted(NamedTuple):
    """Features of a batch, float32; the last two are Inception's, for sFID and the Inception score."""

    pooled_BF: Tensor
    spatial_BS: Tensor | None = None  # channels vary fastest, as in the public references
    probabilities_BK: Tensor | None = None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file; raises ValueError where there are none at its top level."""
    content = read_tensors(path)
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path.name} holds no state dict; save the network's alone")
    return tensors


def take_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights into a network built on the meta device, in float32, and freeze it.

    Raises:
        ValueError: one line about the first tensor that is missing, unknown, of another shape or not finite.
    """
    expected = {name: tuple(own.shape) for name, own in network.state_dict().items()}
    if strange := [name for name in tensors if name not in expected]:
        raise ValueError(f"{strange[0]} is unknown to {type(network).__name__}")
    for name, shape in expected.items():
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        if tensors[name].shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, expected {shape}")
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}  # the file may go
    if problem := damage(copies):
        raise ValueError(problem)
    network.load_state_dict(copies, assign=True)
    network.requires_grad_(False).eval()
