"""Passes between matrix products, compiled from `native.c` on first use: for inference on a CPU, where PyTorch's
many small operations would take longer than the products.

They need gcc and PyTorch's own OpenMP runtime, whose threads they share; otherwise `load` says why there are none, and
`mvar.ops` takes the same steps with PyTorch. The compiled code stays in the user's cache, so that gcc runs once on a
machine. There is no gradient.

Shapes: B batch, L tokens, h heads of P channels, E = h P, N state size, D = E + 2N channels of the short convolution of
width W, V = W - 1 tokens of its tail.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
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
COMPILE_SECONDS = 60  # at most; usually one
DIGEST = hashlib.sha256().digest_size  # bytes, at the end of a cached file


class Passes(NamedTuple):
    """The compiled passes, None if there are none, and why."""

    library: ctypes.CDLL | None
    reason: str


@functools.cache
def load() -> Passes:
    """Load the passes, once in a process; compile them unless the cache has them."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return Passes(None, "there is no gcc to compile its passes")
    try:
        ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    except (OSError, AttributeError):
        return Passes(None, "PyTorch here has other threads than gcc's")
    try:
        return Passes(_cached_or_compiled(compiler), "with gcc, for this processor")
    except subprocess.CalledProcessError as error:
        message = next(iter(error.stderr.splitlines()), f"exit code {error.returncode}")
        return Passes(None, f"gcc does not compile its passes: {message}")
    except (OSError, subprocess.SubprocessError) as error:  # no folder to write into, or to load from
        return Passes(None, f"its passes cannot be compiled: {error}")


def _cached_or_compiled(compiler: str) -> ctypes.CDLL:
    cached = _cache_folder()
    if cached is not None:
        cached /= f"native-{_key(compiler)}.so"
        with suppress(OSError):  # not there yet
            content = cached.read_bytes()
            if hashlib.sha256(content[:-DIGEST]).digest() == content[-DIGEST:]:  # damaged code would end the process
                return ctypes.CDLL(str(cached))
    with tempfile.TemporaryDirectory(prefix="mvar-") as folder:  # once loaded the file is not needed
        target = Path(folder, "native.so")
        command = [compiler, *FLAGS, "-o", str(target), str(SOURCE), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
        if cached is not None:
            with suppress(OSError):  # a full disk
                code = target.read_bytes()  # a loader ignores what follows it
                atomic_write(cached, lambda partial: partial.write_bytes(code + hashlib.sha256(code).digest()))
        return ctypes.CDLL(str(target))


def _cache_folder() -> Path | None:
    """Where compiled code is cached; None unless it is a folder of this user's alone."""
    try:
        folder = cache_folder("native")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except (OSError, RuntimeError):  # there is no home
        return None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return folder if own else None


def _key(compiler: str) -> str:
    """A hash of all that the compiled code depends on; the compiler's size and time change with its version."""
    binary = Path(compiler).resolve()
    found = binary.stat()
    parts = [
        SOURCE.read_bytes(),
        FLAGS,
        str(binary),
        found.st_size,
        found.st_mtime_ns,
        platform.machine(),
        _processor(),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if line.startswith(("model", "flags", "Features", "CPU part")))


def _structure(sizes: str, pointers: str) -> type[ctypes.Structure]:
    fields = [(name, ctypes.c_long) for name in sizes.split()] + [(name, ctypes.c_void_p) for name in pointers.split()]
    return type("Arguments", (ctypes.Structure,), {"_fields_": fields})


# `Mamba` and `Adaln` of the source.
MAMBA = _structure(
    "B L h N",
    "projected conv_weight conv_bias dt_bias A skip norm tail state next_tail next_state scratch y",
)
ADALN = _structure("B L C stride", "x gate scale shift y sum out")


def mamba(
    projected_BLx: Tensor,
    tail_BVD: Tensor,
    state_BhPN: Tensor,
    eps: float,
    *,
    conv_weight_DW: Tensor,
    conv_bias_D: Tensor,
    dt_bias_h: Tensor,
    A_h: Tensor,
    skip_h: Tensor,
    norm_E: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """All of Mamba-2 between its projections; see `mvar.ops.mamba.mamba`. All but `projected_BLx` is float32.

    Returns:
        y (B, L, E) of projected's dtype, the next tail, and the next state, which lies in memory as (B, h, N, P).

    Raises:
        ValueError: heads not of 64 channels, N not a multiple of 16, or tensors that do not fit.
    """
    (B, L, _), (h, P, N) = projected_BLx.shape, state_BhPN.shape[1:]
    E, D, V = h * P, h * P + 2 * N, CONV_WIDTH - 1
    if P != HEAD_DIM or N % LANES:
        raise ValueError(f"mamba: {P} channels a head, state size {N}; must be {HEAD_DIM} and a multiple of {LANES}")
    float32 = {
        "conv_weight": (conv_weight_DW.t(), (CONV_WIDTH, D)),
        "conv_bias": (conv_bias_D, (D,)),
        "dt_bias": (dt_bias_h, (h,)),
        "A": (A_h, (h,)),
        "skip": (skip_h, (h,)),
        "norm": (norm_E, (E,)),
        "tail": (tail_BVD, (B, V, D)),
        "state": (state_BhPN.mT, (B, h, N, P)),
    }
    tensors = {name: _rows(name, x, shape) for name, (x, shape) in float32.items()}
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
    """A gated sum, adaptive LayerNorm, or both in one pass.

    Args:
        x_BLC: float32.
        dtype: of the normalised tokens and of y, float32 or bfloat16.
        eps: of the norm.
        add: gate (B, C) in float32 and y (B, L, C): x becomes x + gate * y first.
        norm: scale (B, C) and shift (B, C) in float32; None normalises nothing.

    Returns:
        x, or the sum; and LayerNorm of it * (1 + scale) + shift, if asked for, else x.

    Raises:
        ValueError: C not a multiple of 16, or tensors that do not fit.
    """
    B, L, C = x_BLC.shape
    if C % LANES:
        raise ValueError(f"adaln: {C} channels; must be a multiple of {LANES}")
    if dtype not in TOKENS:
        raise ValueError(f"adaln: tokens of {dtype}; must be {_names(TOKENS)}")
    tensors, vectors = {"x": _rows("x", x_BLC, (B, L, C))}, {}
    if add is not None:
        vectors["gate"], y_BLC = add
        tensors |= {"y": _rows("y", y_BLC, (B, L, C), (dtype,)), "sum": torch.empty_like(tensors["x"])}
    if norm is not None:
        vectors["scale"], vectors["shift"] = norm
        tensors["out"] = torch.empty_like(tensors["x"], dtype=dtype)
    for name, vector_BC in vectors.items():
        _check(name, vector_BC, (B, C))
    strides = {vector_BC.stride() for vector_BC in vectors.values()}
    if len(strides) > 1 or strides.pop()[1] != 1:  # else they are read where they lie among the image's other vectors
        vectors = {name: vector_BC.contiguous() for name, vector_BC in vectors.items()}
    stride = next(iter(vectors.values())).stride(0)
    pointers = {name: tensor.data_ptr() for name, tensor in (tensors | vectors).items()}
    _call("mvar_adaln", ctypes.byref(ADALN(B, L, C, stride, **pointers)), ctypes.c_float(eps), dtype=dtype)
    return tensors.get("sum", x_BLC), tensors.get("out", x_BLC)


def heads(qkv_BLJHd: Tensor, temperature_H: Tensor) -> Tensor:
    """Queries, keys and values (3, B, H, L, d) with d = 64: queries of length `temperature_H`, keys of length 1."""
    B, L, _, H, d = qkv_BLJHd.shape
    if d != HEAD_DIM:
        raise ValueError(f"heads: {d} channels a head; must be {HEAD_DIM}")
    qkv_BLJHd = _rows("qkv", qkv_BLJHd, (B, L, 3, H, d), TOKENS)
    temperature_H = _rows("temperature", temperature_H, (H,))
    out_JBHLd = qkv_BLJHd.new_empty(3, B, H, L, d)
    addresses = [ctypes.c_void_p(t.data_ptr()) for t in (qkv_BLJHd, temperature_H, out_JBHLd)]
    _call("mvar_heads", *addresses, *map(ctypes.c_long, (B, L, H)), dtype=qkv_BLJHd.dtype)
    return out_JBHLd


def gelu_(x: Tensor) -> Tensor:
    """GELU (tanh approximation) in place, of a contiguous tensor in rows of a multiple of 16 numbers."""
    if x.shape[-1] % LANES or not x.is_contiguous():
        raise ValueError(f"gelu: {tuple(x.shape)} with strides {x.stride()}; must be contiguous, in rows of 16 numbers")
    _check("gelu", x, x.shape, TOKENS)
    _call("mvar_gelu", ctypes.c_void_p(x.data_ptr()), ctypes.c_long(x.numel()), dtype=x.dtype)
    return x


def _call(name: str, *arguments: Any, dtype: torch.dtype) -> None:
    library, reason = load()
    if library is None:
        raise RuntimeError(f"no compiled passes: {reason}; ask `mvar.ops.dispatch.runs_native` first")
    getattr(library, name)(*arguments, dtype == torch.bfloat16, torch.get_num_threads())


def _check(name: str, x: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOAT32) -> None:
    """Raise ValueError unless the tensor has this shape and dtype: the compiled code checks nothing."""
    if x.shape != shape or x.dtype not in dtypes or x.device.type != "cpu":
        found = f"{tuple(x.shape)} of {x.dtype} on {x.device}"
        raise ValueError(f"{name}: {found}, must be {shape} of {_names(dtypes)} on the CPU")


def _rows(name: str, x: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = FLOAT32) -> Tensor:
    """The checked tensor, row after row in memory."""
    _check(name, x, shape, dtypes)
    return x.contiguous()


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(map(str, dtypes))
