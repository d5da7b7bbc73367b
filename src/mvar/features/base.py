"""What all frozen feature networks share, and how they take published weights.

Shapes: B images, H W pixels, F channels of a map, h w its sides.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from mvar.ops.numerics import damage


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


def take_weights(network: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Load weights into a network built on the meta device, in float32, and freeze it.

    Raises:
        ValueError: one line about the first tensor that is missing, unknown, of another shape or not finite.
    """
    expected = network.state_dict()
    if strange := [name for name in tensors if name not in expected]:
        raise ValueError(f"{strange[0]} is unknown to {type(network).__name__}")
    for name, own in expected.items():
        require_shape(tensors, name, tuple(own.shape))
        if not tensors[name].is_floating_point():
            raise ValueError(f"{name} holds {tensors[name].dtype}, expected floating-point numbers")
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}  # the file may go
    if problem := damage(copies):
        raise ValueError(problem)
    network.load_state_dict(copies, assign=True)
    network.requires_grad_(False).eval()


def require_shape(tensors: Mapping[str, Any], name: str, shape: tuple[int | None, ...]) -> list[int]:
    """The shape of a tensor, where None matches any length from 1.

    Raises:
        ValueError: it is missing, or of another shape.
    """
    if not isinstance(tensor := tensors.get(name), Tensor):
        raise ValueError(f"{name} is missing")
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(n != m if m is not None else n < 1 for n, m in zip(found, shape, strict=True)):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name} has shape {found}, expected ({wanted})")
    return list(found)
