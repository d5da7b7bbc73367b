"""Log decays and their running sums, exact whatever the steps: one token may forget all, the next ones nothing.

Shapes: any; the letters are the caller's.
"""

import torch
from torch import Tensor

# exp of this is 0: a token that decays more forgets no more. A bound keeps sums finite and their rounding small.
FORGOTTEN = {torch.float32: -104.0, torch.float64: -746.0}


def log_decay(dt_BLh: Tensor, A_h: Tensor) -> Tensor:
    """dt A, where the state decays by exp(dt A) at each token, bounded to what leaves exp(dt A) as it is."""
    a_BLh = dt_BLh * A_h
    return a_BLh.clamp(min=FORGOTTEN[a_BLh.dtype])


def running_sum(a: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The running sum c along a dimension, and the small rest r that its rounding drops: the sum is c + r.

    exp(c_i - c_j) exp(r_i) exp(-r_j) is exact where c_i - c_j alone would lose all that is below c's last digit. The
    last two factors are close to 1 and belong to single tokens, so they cost next to nothing.
    """
    c = a.cumsum(dim)
    rounded = torch.diff(c, dim=dim, prepend=torch.zeros_like(c.narrow(dim, 0, 1)))  # the step that c has taken
    return c, (a - rounded).cumsum(dim)
