"""Noise that belongs to an image: a pure function of (seed, image index, stream, position).

Counter-based, so that image i gets the same bits whatever the batch, its order or the number of machines. NumPy
computes it on the CPU, one image at a time; on a GPU a kernel gives the same bits.

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

from mvar.ops.dispatch import NOISE, runs_kernels

CPU = torch.device("cpu")
_BELOW_ONE = np.float32(1 - 2**-24)  # the largest float32 below 1


def uniform(seed: int, index: Sequence[int], stream: int, shape: Sequence[int]) -> Tensor:
    """Independent uniform numbers for each image, in float32 (len(index), *shape), strictly inside (0, 1).

    `stream` separates the noise of one image, for example by scale. Close to 0, steps are 2**-32.
    """
    seed, stream, *index = map(operator.index, (seed, stream, *index))
    for name, number in (("seed", seed), ("stream", stream), *(("index", i) for i in index)):
        if not 0 <= number < 2**64:
            raise ValueError(f"{name} = {number}: give an integer from 0 to 2**64 - 1")
    count = prod(shape)
    noise = np.empty((len(index), count), dtype=np.float32)
    for row, i in zip(noise, index, strict=True):
        key = np.array((seed, i), dtype=np.uint64)  # of a tuple numpy would make floats where one is above 2**63
        bits = Philox(key=key, counter=(0, 0, stream, 0)).random_raw((count + 1) // 2)
        np.add(bits.view(np.uint32)[:count], 0.5, out=row, dtype=np.float32)
        row *= np.float32(2**-32)
        np.minimum(row, _BELOW_ONE, out=row)
    return torch.from_numpy(noise).view(len(index), *shape)


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

        return by_kernel(seed, index, stream, shape, at, device)
    u = uniform(seed, index, stream, shape)
    noise = (u if at is None else u.gather(-1, at.cpu())).numpy()
    for row in noise:
        row[...] = -np.log(-np.log1p(-row))
    return torch.from_numpy(noise).to(device)
