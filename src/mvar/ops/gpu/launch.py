"""What all kernels share: small functions of their language, tile sizes, and the number of their programs."""

import functools
import os
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar, cast

import torch
import triton
import triton.language as tl

Operator = TypeVar("Operator", bound=Callable[..., object])
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
ROWS = 8  # tokens of one program where it adds gradients up over tokens
TOKENS = 32  # of one program otherwise


@triton.jit
def silu(x):
    return x / (1 + tl.exp(-x))


@triton.jit
def silu_slope(x):
    s = 1 / (1 + tl.exp(-x))
    return s * (1 + x * (1 - s))


@triton.jit
def dot(a, b):
    """A product with float32 sums; of float32 numbers in three products of TF32, which loses almost nothing."""
    if INTERPRETED:  # which multiplies the bits of bfloat16
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def load(ptr, at, mask):
    """Numbers as float32, 0 outside the mask."""
    return tl.load(ptr + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def number(ptr, at):
    """One number as float32."""
    return tl.load(ptr + at).to(tl.float32)


def on_its_device(operator: Operator) -> Operator:
    """The operator, with the device of its first tensor made the current one, on which Triton launches."""

    @functools.wraps(operator)
    def launched(*arguments: object) -> object:
        device = next(one.device for one in arguments if isinstance(one, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return operator(*arguments)

    return cast(Operator, launched)


def tiles(count: int, size: int) -> int:
    """How many programs cover `count`."""
    return -(-count // size)


def power(count: int) -> int:
    """The next power of two: the length of a vector in a kernel."""
    return int(triton.next_power_of_2(count))


def warps(width: int) -> int:
    """Warps of a program that holds a vector of this width."""
    return min(max(width // 256, 1), 8)
