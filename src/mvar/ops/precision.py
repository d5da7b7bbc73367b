"""Which numbers never drop below float32, whatever dtype the matrices use."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is already float32 or float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on this tensor's device keep their inputs' dtype."""
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)  # torch knows none for meta


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32; a CPU without instructions for them is far slower."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def bfloat16_products(on: bool) -> Iterator[None]:
    """Let a CPU round float32 matrices to bfloat16 for their product, which stays float32; only where it is `on`.

    Meant for the few products with float32 operands in a network of bfloat16 weights: several times faster on
    processors that multiply bfloat16, without effect on others. It holds for the whole process while it lasts.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at import
    before = settings.fp32_precision
    if on:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
