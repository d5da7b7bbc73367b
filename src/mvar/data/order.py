"""In which order training sees its images: pure functions of (seed, epoch, step), so that a run resumes at any step.

Shapes: B batch. Epochs follow each other without a break: a batch may end one and begin the next.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mvar.ops.noise import uniform


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of n images in one epoch, int64 (n,), read-only."""
    # By raw bits, which NumPy promises to stay the same in every version; of its permutations it does not.
    order = np.argsort(np.random.Philox((seed, epoch)).random_raw(n), kind="stable")
    order.setflags(write=False)
    return order


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """The images of one training step.

    Args:
        n: images in the set, at least 1; it may be smaller than the batch.
        step: steps done before this one, over all epochs.

    Returns:
        Image indices and each one's epoch, both int64 (B,).
    """
    positions_B = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs_B, places_B = np.divmod(positions_B, n)
    indices_B = np.concatenate([epoch_order(n, seed, int(e))[places_B[epochs_B == e]] for e in np.unique(epochs_B)])
    return torch.from_numpy(indices_B), torch.from_numpy(epochs_B)


def view_noise(seed: int, epochs_B: Tensor, indices_B: Tensor) -> Tensor:
    """What decides a view, float32 (B, 6) in (0, 1), from (seed, epoch, image index) alone.

    In their order: place of the crop, vertical and horizontal; shift, vertical and horizontal; size; mirror image.
    """
    rows = [uniform(seed, [i], e, (6,)) for e, i in zip(epochs_B.tolist(), indices_B.tolist(), strict=True)]
    return torch.cat(rows)
