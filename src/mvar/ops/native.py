"""Passes between matrix products, compiled from `native.c` on first use: for inference on a CPU, without a gradient.

They need gcc and PyTorch's own OpenMP runtime, whose threads they share; otherwise `load` says why there are none.

Shapes: B batch, L tokens, h heads of P channels, E = h P, N state size, D = E + 2N channels of the short convolution of
width W, V = W - 1 tokens of its tail.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mvar.files import atomic_write, cache_folder

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
HEAD_DIM, CONV_WIDTH, TILE = 64, 4, 32  # as in the source
LANES = 16  # numbers of its widest vector, a multiple of the others
TOKENS = (torch.float32, torch.bfloat16)
FLOAT32 = (torch.float32,)


class Passes(NamedTuple):
    """The compiled passes, None if there are none, and why."""

    library: ctypes.CDLL | None
    reason: str


@functools.cache
def load() -> Passes:
    """Load the passes, once in a process; compile them unless the user's cache has them."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return Passes(None, "there is no gcc to compile its passes")
    try:
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except (OSError, AttributeError):
        return Passes(None, "PyTorch here has other threads than gcc's")
    try:
        with suppress(OSError, RuntimeError):  # no home, a folder of others, a full disk
            return Passes(_cached(compiler), "with gcc, for this processor")
        with tempfile.TemporaryDirectory(prefix="mvar-") as folder:  # once loaded the file is not needed
            target = Path(folder, "native.so")
            _compile(compiler, target)
            return Passes(ctypes.CDLL(str(target)), "with gcc, for this processor")
    except (OSError, subprocess.CalledProcessError) as error:
        message = getattr(error, "stderr", None) or str(error)
        return Passes(None, f"its passes cannot be compiled: {message.splitlines()[0]}")


def _compile(compiler: str, target: Path) -> None:
    subprocess.run([compiler, *FLAGS, "-o", target, SOURCE, "-lm"], check=True, capture_output=True, text=True)


def _cached(compiler: str) -> ctypes.CDLL:
    """The passes in the user's cache, compiled if they are not there; OSError if others may write into it."""
    folder = cache_folder("native")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder}: others may write code into it")
    binary = Path(compiler).resolve()
    version = binary.stat()  # size and time change with it
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    seen_by_march = [line for line in processor if line.startswith(("model", "flags", "Features", "CPU part"))]
    parts = [SOURCE.read_bytes(), FLAGS, str(binary), version.st_size, version.st_mtime_ns, seen_by_march]
    path = folder / f"native-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}.so"
    if not path.exists():
        atomic_write(path, functools.partial(_compile, compiler))
    return ctypes.CDLL(str(path))


def _structure(sizes: str, pointers: str) -> type[ctypes.Structure]:
    fields = [(name, ctypes.c_long) for name in sizes.split()] + [(name, ctypes.c_void_p) for name in pointers.split()]
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields})


# `Mamba` and `Adaln` of the source.
INPUTS, OUTPUTS = "projected conv_weight conv_bias dt_bias A skip norm tail state", "next_tail next_state scratch y"
MAMBA = _structure("B L h N", f"{INPUTS} {OUTPUTS}")
ADALN = _structure("B L C", "x gate scale shift y sum out")


def mamba(
    projected_BLx: Tensor, tail_BVD: Tensor, state_BhPN: Tensor, A_h: Tensor, weights: Iterable[Tensor], eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """All of Mamba-2 between its projections, for P = 64 and N a multiple of 16; see `mvar.ops.mamba.mamba`.

    All but `projected_BLx` is float32. Returns y (B, L, E), the next tail and the next state.
    """
    conv_weight_DW, conv_bias_D, dt_bias_h, skip_h, norm_E = weights
    (B, L, _), (h, P, N) = projected_BLx.shape, state_BhPN.shape[1:]
    E, D, V = h * P, h * P + 2 * N, CONV_WIDTH - 1
    shaped = {
        "conv_weight": (conv_weight_DW.t(), (CONV_WIDTH, D)),
        "conv_bias": (conv_bias_D, (D,)),
        "dt_bias": (dt_bias_h, (h,)),
        "A": (A_h, (h,)),
        "skip": (skip_h, (h,)),
        "norm": (norm_E, (E,)),
        "tail": (tail_BVD, (B, V, D)),
        "state": (state_BhPN.mT, (B, h, N, P)),
    }
    tensors = {name: _rows(name, x, shape) for name, (x, shape) in shaped.items()}
    tensors["projected"] = _rows("projected", projected_BLx, (B, L, E + D + h), TOKENS)
    tensors["next_tail"], tensors["next_state"] = map(torch.empty_like, (tensors["tail"], tensors["state"]))
    tensors["y"], tensors["scratch"] = projected_BLx.new_empty(B, L, E), torch.empty(B, L, 2 * N + TILE)
    arguments = MAMBA(B, L, h, N, **{name: tensor.data_ptr() for name, tensor in tensors.items()})
    _call("mvar_mamba", ctypes.byref(arguments), ctypes.c_float(eps), dtype=projected_BLx.dtype)
    return tensors["y"], tensors["next_tail"], tensors["next_state"].mT


def adaln(
    x_BLC: Tensor,
    dtype: torch.dtype,
    eps: float,
    add: tuple[Tensor, Tensor] | None = None,
    norm: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """A gated sum, adaptive LayerNorm, or both in one pass, for C a multiple of 16.

    Args:
        x_BLC: float32, like all but y.
        dtype: of the normalised tokens and of y, float32 or bfloat16.
        add: gate (B, C) and y (B, L, C): x becomes x + gate * y first.
        norm: scale (B, C) and shift (B, C): the second result is LayerNorm(x) * (1 + scale) + shift.
    """
    B, L, C = x_BLC.shape
    tensors = {"x": _rows("x", x_BLC, (B, L, C))}
    if add is not None:
        tensors |= {"gate": _rows("gate", add[0], (B, C)), "y": _rows("y", add[1], (B, L, C), (dtype,))}
        tensors["sum"] = torch.empty_like(tensors["x"])
    if norm is not None:
        tensors |= {"scale": _rows("scale", norm[0], (B, C)), "shift": _rows("shift", norm[1], (B, C))}
        tensors["out"] = torch.empty_like(tensors["x"], dtype=dtype)
    pointers = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    _call("mvar_adaln", ctypes.byref(ADALN(B, L, C, **pointers)), ctypes.c_float(eps), dtype=dtype)
    return tensors.get("sum", x_BLC), tensors.get("out", x_BLC)


def heads(qkv_BLJHd: Tensor, temperature_H: Tensor) -> Tensor:
    """Queries, keys and values (3, B, H, L, d) with d = 64: queries of length `temperature_H`, keys of length 1."""
    B, L, _, H, d = qkv_BLJHd.shape
    qkv_BLJHd = _rows("qkv", qkv_BLJHd, (B, L, 3, H, d), TOKENS)
    temperature_H = _rows("temperature", temperature_H, (H,))
    out_JBHLd = qkv_BLJHd.new_empty(3, B, H, L, d)
    addresses = [ctypes.c_void_p(t.data_ptr()) for t in (qkv_BLJHd, temperature_H, out_JBHLd)]
    _call("mvar_heads", *addresses, *map(ctypes.c_long, (B, L, H)), dtype=qkv_BLJHd.dtype)
    return out_JBHLd


def gelu_(x: Tensor) -> Tensor:
    """GELU (tanh approximation) in place, of a contiguous tensor in rows of a multiple of 16 numbers."""
    if not x.is_contiguous():
        raise ValueError("gelu: the tensor must be contiguous")
    _rows("gelu", x, x.shape, TOKENS)
    _call("mvar_gelu", ctypes.c_void_p(x.data_ptr()), ctypes.c_long(x.numel()), dtype=x.dtype)
    return x


def _call(name: str, *arguments: Any, dtype: torch.dtype) -> None:
    library, reason = load()
    if library is None:
        raise RuntimeError(f"no compiled passes: {reason}; ask `mvar.ops.dispatch.runs_native` first")
    getattr(library, name)(*arguments, dtype == torch.bfloat16, torch.get_num_threads())


def _rows(name: str, x: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOAT32) -> Tensor:
    """The tensor, row after row in memory, of this shape and one of these dtypes: the compiled code checks nothing."""
    if x.shape != shape or x.dtype not in dtypes or x.device.type != "cpu":
        found = f"{tuple(x.shape)} of {x.dtype} on {x.device}"
        raise ValueError(f"{name}: {found}, must be {shape} of {' or '.join(map(str, dtypes))} on the CPU")
    return x.contiguous()
