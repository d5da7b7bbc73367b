"""Noise that belongs to an image: a pure function of (seed, image index, stream, position).

Counter-based, so that image i gets the same bits whatever the batch, its order or the number of machines; computed on
the CPU.

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
        bits = Philox(key=(seed, i), counter=(0, 0, stream, 0)).random_raw((count + 1) // 2)
        np.add(bits.view(np.uint32)[:count], 0.5, out=row, dtype=np.float32)
        row *= np.float32(2**-32)
        np.minimum(row, _BELOW_ONE, out=row)
    return torch.from_numpy(noise).view(len(index), *shape)


def gumbel(seed: int, index: Sequence[int], stream: int, shape: Sequence[int], at: Tensor | None = None) -> Tensor:
    """Standard Gumbel noise, -log(-log(1 - u)): argmax(logits + noise) is a draw from softmax(logits).

    With `at`, int64 (len(index), *shape[:-1], n), only these n numbers along the last dimension are computed.
    Large values, which decide, come from u close to 0, where float32 is finest.
    """
    u = uniform(seed, index, stream, shape)
    noise = (u if at is None else u.gather(-1, at.cpu())).numpy()
    for row in noise:
        row[...] = -np.log(-np.log1p(-row))
    return torch.from_numpy(noise)
