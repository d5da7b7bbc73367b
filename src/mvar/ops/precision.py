"""Which numbers never drop below float32, whatever dtype the matrices use."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is already float32 or float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
