"""In which order training sees its images: pure functions of (seed, epoch, step), so that a run resumes at any step.

Shapes: B batch. Epochs follow each other without a break: a batch may end one and begin the next.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of n images in one epoch, int64 (n,), read-only."""
    # From raw bits, which NumPy promises to keep the same in every version, unlike its permutations.
    order = np.argsort(np.random.Philox((seed, epoch)).random_raw(n), kind="stable")
    order.setflags(write=False)
    return order


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The images of one optimizer step.

    Args:
        n: images in the set, at least 1; it may be smaller than the batch.
        step: number of steps before this one, over all epochs.

    Returns:
        Image indices and the epoch of each, both int64 (B,).
    """
    positions_B = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs_B, places_B = np.divmod(positions_B, n)
    indices_B = np.concatenate([epoch_order(n, seed, int(e))[places_B[epochs_B == e]] for e in np.unique(epochs_B)])
    return torch.from_numpy(indices_B), torch.from_numpy(epochs_B)


def evenly_spaced(n: int, most: int) -> list[int]:
    """At most `most` distinct indices below n, evenly spaced: of files sorted by class, every class gets its part."""
    chosen = min(n, most)
    return [i * n // chosen for i in range(chosen)]
