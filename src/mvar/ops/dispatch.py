"""Which implementation of an operation runs: one rule for attention, scan, convolution, GELU, norms and cross-entropy.

The environment variable MVAR_OPS overrides the choice for all of them:

- auto (default): the fastest that is available for the device, the dtype and whether there is a gradient;
- native: the same, but an error where the compiled passes (CPU) or mamba-ssm's kernel (CUDA) are not available;
- torch: this package's PyTorch code, without compiled passes and without mamba-ssm;
- reference: the definitions, token by token and without fused operations; slow.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mvar.ops import native

MODES = ("auto", "reference", "torch", "native")
KERNEL = "mamba_ssm.ops.triton.ssd_combined"


def mode() -> str:
    """The value of MVAR_OPS; "torch" in what torch.compile traces."""
    if torch.compiler.is_compiling():
        return "torch"
    value = os.environ.get("MVAR_OPS") or "auto"
    if value not in MODES:
        raise ValueError(f"MVAR_OPS = {value!r}: must be auto, reference, torch or native")
    return value


def runs_reference() -> bool:
    """Whether the definitions run in place of faster code."""
    return mode() == "reference"


def runs_native(x: Tensor) -> bool:
    """Whether the compiled passes take such tokens: float32 or bfloat16 on a CPU without a gradient."""
    if torch.is_grad_enabled() or torch.jit.is_tracing() or type(x) is not Tensor:  # a tracer cannot see into them
        return False
    if x.device.type != "cpu" or x.dtype not in native.TOKENS or mode() not in ("auto", "native"):
        return False
    return _available(*native.load()) is not None


def mamba_ssm(device: torch.device) -> Callable[..., Any] | None:
    """mamba-ssm's kernel if scans on this device run on it."""
    if device.type != "cuda" or mode() not in ("auto", "native"):
        return None
    return _available(*find_mamba_ssm())


@functools.cache
def find_mamba_ssm() -> tuple[Callable[..., Any] | None, str]:
    """Import mamba-ssm's kernel, once in a process: the kernel, None if it is not available, and why."""
    try:
        return importlib.import_module(KERNEL).mamba_chunk_scan_combined, "it imports"
    except Exception as error:  # whatever a package built for another machine may raise
        return None, f"mamba-ssm does not import: {type(error).__name__}: {error}"


def describe(device: torch.device) -> str:
    """What runs between matrix products on this device, and why, for `mvar info`."""
    if mode() in ("reference", "torch"):
        return f"{'reference' if runs_reference() else 'PyTorch'} (MVAR_OPS = {mode()})"
    if device.type == "cpu":
        library, reason = native.load()
        return f"{'PyTorch' if library is None else 'compiled'} ({reason})"
    if device.type != "cuda":
        return f"PyTorch (mamba-ssm needs CUDA, this is {device.type})"
    kernel, reason = find_mamba_ssm()
    return f"{'PyTorch' if kernel is None else 'mamba-ssm'} ({reason})"


def _available(code: Any, reason: str) -> Any:
    if code is None and mode() == "native":
        raise ValueError(f"MVAR_OPS = 'native': {reason}; set it to auto or torch")
    return code
