"""What never drops below float32, how autocast is switched off, and whether numbers are finite."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

# Why a network's outputs are not finite, and what to do about it.
CAUSE = "its weights are damaged, or overflow in bfloat16"
REMEDY = "load the model with dtype float32, or get it again"


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32; unchanged if it is already float32 or float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which operations on this tensor's device keep their inputs' dtype."""
    kind = x.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def product_dtype(weight: Tensor) -> torch.dtype:
    """The dtype in which this weight's products run: autocast's, else its own."""
    kind = weight.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):  # torch has no autocast for meta
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones: not on a CPU without instructions for them."""
    return device.type != "cpu" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


@contextmanager
def bfloat16_products(on: bool) -> Iterator[None]:
    """If `on`, let a CPU that multiplies bfloat16 round operands of float32 products to it, in the whole process."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made at import
    before = settings.fp32_precision
    if on:
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def all_finite(x: Tensor) -> bool:
    """Whether there is neither NaN nor infinity, in one pass without a temporary; true on the meta device."""
    if x.is_meta or not x.numel():
        return True
    low, high = x.detach().aminmax()  # both are NaN if any number is
    return bool(low.isfinite() & high.isfinite())


def damage(weights: Mapping[str, Tensor]) -> str | None:
    """One line that names the first tensor with NaN or infinity; None if all are finite."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not all_finite(tensor):
            bad = tensor.numel() - int(tensor.isfinite().sum())
            return (
                f"{name} holds NaN or infinity in {bad} of {tensor.numel()} places: the file is damaged, or training "
                "diverged; get it again, or take an earlier checkpoint"
            )
    return None
