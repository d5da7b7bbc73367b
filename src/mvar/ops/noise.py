"""Noise that belongs to an image: a pure function of (seed, image index, stream, position).

Counter-based, so that image i gets the same bits whatever the batch, its order or the number of machines. NumPy
computes it on the CPU, one image at a time; elsewhere a kernel, or PyTorch's integers, give the same bits.

Source: Philox (Salmon et al. 2011) with key (seed, index) and counter (position, stream), whose raw bits NumPy promises
to be the same in every version.
"""

import operator
from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from numpy.random import Philox
from torch import Tensor

from mvar.machine import send
from mvar.ops.dispatch import NOISE, runs_kernels

CPU = torch.device("cpu")
_BELOW_ONE = np.float32(1 - 2**-24)  # the largest float32 below 1


def uniform(seed: int, index: Sequence[int], stream: int, shape: Sequence[int]) -> Tensor:
    """Independent uniform numbers for each image, in float32 (len(index), *shape), strictly inside (0, 1).

    `stream` separates the noise of one image, for example by scale. Close to 0, steps are 2**-32.
    """
    seed, stream, *index = _counted(seed, stream, index)
    count = prod(shape)
    noise = np.empty((len(index), count), dtype=np.float32)
    # Of tuples NumPy would make floats where a number is above 2**63.
    counter = np.array((0, 0, stream, 0), dtype=np.uint64)
    for row, i in zip(noise, index, strict=True):
        key = np.array((seed, i), dtype=np.uint64)
        bits = Philox(key=key, counter=counter).random_raw((count + 1) // 2)
        np.add(bits.view(np.uint32)[:count], 0.5, out=row, dtype=np.float32)
        row *= np.float32(2**-32)
        np.minimum(row, _BELOW_ONE, out=row)
    return torch.from_numpy(noise).view(len(index), *shape)


def _counted(seed: int, stream: int, index: Sequence[int]) -> list[int]:
    """The numbers that key the noise, in Python's own integers."""
    numbers = list(map(operator.index, (seed, stream, *index)))
    for name, number in zip(("seed", "stream", *("index" for _ in index)), numbers, strict=True):
        if not 0 <= number < 2**64:
            raise ValueError(f"{name} = {number}: give an integer from 0 to 2**64 - 1")
    return numbers


def gumbel(
    seed: int,
    index: Sequence[int],
    stream: int,
    shape: Sequence[int],
    at: Tensor | None = None,
    device: torch.device = CPU,
) -> Tensor:
    """Standard Gumbel noise, -log(-log(1 - u)): argmax(logits + noise) is a draw from softmax(logits).

    With `at`, int64 (len(index), *shape[:-1], n), only these n numbers along the last dimension are computed.
    Large values, which decide, come from u close to 0, where float32 is finest. On a GPU with kernels the bits are the
    same, the logarithms may differ in the last digit.
    """
    if runs_kernels(torch.empty(0, device=device), NOISE):
        from mvar.ops.gpu.noise import gumbel as by_kernel

        seed, stream, *index = _counted(seed, stream, index)
        return by_kernel(seed, index, stream, shape, at, device)
    if device.type != "cpu":
        keys = send(key_bits(seed, index), device)
        return -(-torch.log1p(-uniform_at(keys, stream, shape, at))).log()
    u = uniform(seed, index, stream, shape)
    noise = (u if at is None else u.gather(-1, at)).numpy()
    for row in noise:
        row[...] = -np.log(-np.log1p(-row))
    return torch.from_numpy(noise)


# --- on other devices, in signed integers of 64 bits, whose products and sums wrap around ---

LOW = 0xFFFFFFFF
MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def key_bits(seed: int, index: Sequence[int]) -> Tensor:
    """Seed and the images' numbers: int64 (1 + B,) with the bits of uint64, on the CPU."""
    seed, _, *index = _counted(seed, 0, index)
    return torch.tensor([seed, *index], dtype=torch.uint64).view(torch.int64)


def uniform_at(keys: Tensor, stream: int, shape: Sequence[int], at: Tensor | None = None) -> Tensor:
    """As `uniform`, for images of these `key_bits`, on their device; with `at` as in `gumbel`."""
    places = torch.arange(prod(shape), device=keys.device).view(1, *shape)
    if at is not None:
        places = places[..., :1] + at
    words = places // 2
    zero = torch.zeros_like(words)
    counter = [words // 4 + 1, zero, zero + _signed(stream), zero]
    key = [keys[:1].view(-1, *[1] * len(shape)), keys[1:].view(-1, *[1] * len(shape))]
    for _ in range(10):
        (high0, low0), (high2, low2) = (_product(m, counter[i]) for m, i in zip(MULTIPLIERS, (0, 2), strict=True))
        counter = [high2 ^ counter[1] ^ key[0], low2, high0 ^ counter[3] ^ key[1], low0]
        key = [k + _signed(step) for k, step in zip(key, KEY_STEPS, strict=True)]
    bits = counter[3]
    for lane in (2, 1, 0):
        bits = torch.where(words % 4 == lane, counter[lane], bits)
    half = torch.where(places % 2 == 0, bits, bits >> 32) & LOW
    return ((half.float() + 0.5) * 2.0**-32).clamp(max=float(_BELOW_ONE))


def _signed(number: int) -> int:
    """The signed number with these 64 bits."""
    return number - 2**64 if number >= 2**63 else number


def _product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low 64 bits of an unsigned product, by parts of 32 bits."""
    a_high, a_low, b_high, b_low = a >> 32, a & LOW, (b >> 32) & LOW, b & LOW
    low, across, along = a_low * b_low, a_low * b_high, a_high * b_low
    carried = ((low >> 32) & LOW) + (across & LOW) + (along & LOW)
    high = a_high * b_high + ((across >> 32) & LOW) + ((along >> 32) & LOW) + (carried >> 32)
    return high, _signed(a) * b
