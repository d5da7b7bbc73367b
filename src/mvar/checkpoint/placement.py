"""Where and in which dtype networks run."""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import nn

from mvar.generator.network import Generator
from mvar.nn.linear import Linear
from mvar.ops.numerics import has_fast_bfloat16
from mvar.tokenizer.network import Tokenizer

Dtype = Literal["float32", "bfloat16"]
LARGE = 100_000_000  # parameters from which bfloat16 is the default: reading weights then takes most of the time


def to_device(
    tokenizer: Tokenizer, generator: Generator | None, device: str | torch.device | None, dtype: Dtype | None
) -> None:
    """Move networks to a device and cast them to a dtype, ready to run; arguments and errors as for `mvar.load`."""
    where = find_device(device)
    dtype = dtype_for(generator, where, dtype)
    projections = [m for m in generator.modules() if isinstance(m, Linear)] if generator else []
    for projection in projections:
        projection.unpack()
    for network in (tokenizer, generator):
        if network is not None:
            network.to(where).eval()  # networks that come from training too
    if dtype == "bfloat16":
        cast_to_bfloat16(tokenizer, generator)
        for projection in projections:
            projection.prepack()
        tokenizer.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # twice as fast on a CPU


def dtype_for(generator: Generator | None, device: torch.device, dtype: Dtype | None) -> Dtype:
    """The dtype to run in; arguments and errors are those of `to_device`."""
    if dtype is None:
        large = generator is not None and sum(p.numel() for p in generator.parameters()) >= LARGE
        return find_dtype(None, device) if large else "float32"
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype = {dtype!r}: must be float32 or bfloat16")
    return dtype


def cast_to_bfloat16(tokenizer: Tokenizer, generator: Generator | None) -> None:
    """Cast the modules that run in bfloat16."""
    for module in _bfloat16_modules(tokenizer, generator):
        module.to(torch.bfloat16)


def _bfloat16_modules(tokenizer: Tokenizer, generator: Generator | None) -> Iterator[nn.Module]:
    """What bfloat16 is for: the generator's projections and the decoder; what makes tokens of an image is exact."""
    head = generator.head if generator else None  # logits are computed in float32
    for module in generator.modules() if generator else ():
        if isinstance(module, nn.Linear) and module is not head:
            yield module
    yield tokenizer.decoder


def weight_bytes(tokenizer: Tokenizer, generator: Generator | None) -> tuple[int, int]:
    """Bytes that the weights of a model take in float32, and cast to bfloat16 by `to_device`."""
    networks = [tokenizer] if generator is None else [tokenizer, generator]
    count = sum(p.numel() for network in networks for p in network.parameters())
    cast = sum(p.numel() for module in _bfloat16_modules(tokenizer, generator) for p in module.parameters())
    return 4 * count, 4 * count - 2 * cast


def find_dtype(dtype: Dtype | None, device: torch.device) -> Dtype:
    """The dtype of matrix products: as asked, else bfloat16 where it is faster than float32 on this processor."""
    if dtype is not None:
        return dtype
    return "bfloat16" if has_fast_bfloat16(device) else "float32"


def find_device(device: str | torch.device | None) -> torch.device:
    """The device of this name; None takes CUDA where there is one, else the CPU."""
    if device == torch.device("meta"):  # not the name: counting needs no values, running does
        return device
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        found = torch.device(("cuda" if gpus else "cpu") if device is None else device)
        torch.zeros(1, device=found).item()  # "meta" has no values
    except (RuntimeError, AssertionError, ImportError) as error:  # each may mean a missing device
        choices = "cpu" + ("" if not gpus else " or cuda" if gpus == 1 else f", or cuda:0 to cuda:{gpus - 1}")
        raise ValueError(f"device = {str(device)!r}: not available here; give {choices}") from error
    return found


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__)
