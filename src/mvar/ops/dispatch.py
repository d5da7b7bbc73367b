"""Which implementation of an operation runs: one rule for attention, scan, convolution, GELU, norms and cross-entropy.

The environment variable MVAR_OPS overrides the choice for all of them:

- auto (default): the fastest that is available for the device, the dtype and whether there is a gradient;
- native: the same, but an error where the compiled passes (CPU) or the Triton kernels (CUDA) are not available;
- torch: this package's PyTorch code, without compiled passes and kernels;
- reference: the definitions, token by token and without fused operations; slow.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from mvar.ops import native

MODES = ("auto", "reference", "torch", "native")
NOISE = torch.uint64  # of which noise is made


_forced: ContextVar[str | None] = ContextVar("forced", default=None)  # by `torch_only`


def mode() -> str:
    """The value of MVAR_OPS."""
    value = _forced.get() or os.environ.get("MVAR_OPS") or "auto"
    if value not in MODES:
        raise ValueError(f"MVAR_OPS = {value!r}: must be auto, reference, torch or native")
    return value


@contextmanager
def torch_only() -> Iterator[None]:
    """Within it, only this package's PyTorch code runs."""
    token = _forced.set("torch")
    try:
        yield
    finally:
        _forced.reset(token)


_verdicts: dict[tuple[torch.device, torch.dtype, bool], tuple[bool, str]] = {}  # on kernels


def _traced(x: Tensor) -> bool:
    """Whether a program is being traced by other means than torch.compile: its tensors have no values to check."""
    return torch.jit.is_tracing() or type(x) is not Tensor


def runs_reference() -> bool:
    """Whether the definitions run in place of faster code."""
    return mode() == "reference"


def runs_native(x: Tensor) -> bool:
    """Whether the compiled passes take such tokens: float32 or bfloat16 on a CPU without a gradient."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or _traced(x):
        return False
    if x.device.type != "cpu" or x.dtype not in native.TOKENS or mode() not in ("auto", "native"):
        return False
    return _available(*native.load()) is not None


def recomputes(x: Tensor) -> bool:
    """Whether the backward pass computes cheap functions again rather than keep them: not on a CPU, which has more
    memory than time."""
    return torch.is_grad_enabled() and x.device.type != "cpu" and not runs_reference()


def runs_kernels(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the Triton kernels take such tokens: float32 or bfloat16 on CUDA.

    If MVAR_OPS is native also on the meta device, which shows what would run on a GPU.

    Args:
        dtype: of the tokens that they give, x's if None; NOISE asks for the kernel of noise alone.
    """
    dtype, chosen = dtype or x.dtype, mode()
    if dtype not in (*native.TOKENS, NOISE) or chosen not in ("auto", "native") or _traced(x):
        return False
    if x.is_meta:
        return chosen == "native"
    return x.is_cuda and _available(*find_kernels(x.device, dtype, dtype != NOISE and torch.is_grad_enabled()))


def find_kernels(device: torch.device, dtype: torch.dtype, gradient: bool) -> tuple[bool, str]:
    """Whether the Triton kernels compile on this device and agree with PyTorch there, and why not.

    Args:
        gradient: whether their gradients must agree too.
    """
    asked = device, dtype, gradient
    if asked not in _verdicts:  # not functools.cache, which torch.compile looks through
        _verdicts[asked] = _check(*asked)
    return _verdicts[asked]


def _check(device: torch.device, dtype: torch.dtype, gradient: bool) -> tuple[bool, str]:
    try:
        from mvar.ops.gpu.check import first_difference

        problem = first_difference(device, dtype, gradient)
    except torch.OutOfMemoryError:  # says nothing about the kernels
        raise
    except Exception as error:  # whatever a compiler may raise
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if problem is None:
        return True, "they compile and agree with PyTorch"
    warnings.warn(f"the Triton kernels are not used on {device} in {dtype}: {problem}", stacklevel=4)
    return False, problem


def check_kernels(device: torch.device) -> None:
    """Find the kernels of a GPU now: torch.compile could not while it traces."""
    if device.type == "cuda" and mode() in ("auto", "native"):
        for dtype in native.TOKENS:
            find_kernels(device, dtype, True)


def describe(device: torch.device, dtype: torch.dtype) -> str:
    """What runs between matrix products on this device, and why, for `mvar info`."""
    if mode() in ("reference", "torch"):
        return f"{'reference' if runs_reference() else 'PyTorch'} (MVAR_OPS = {mode()})"
    if device.type == "cpu":
        library, reason = native.load()
        return f"{'PyTorch' if library is None else 'compiled'} ({reason})"
    if device.type != "cuda":
        return f"PyTorch (the Triton kernels need CUDA, this is {device.type})"
    found, reason = find_kernels(device, dtype, False)
    return f"{'Triton kernels' if found else 'PyTorch'} ({reason})"


def _available(code: Any, reason: str) -> Any:
    if not code and mode() == "native":
        raise ValueError(f"MVAR_OPS = 'native': {reason}; set it to auto or torch")
    return code
