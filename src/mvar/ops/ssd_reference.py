"""Mamba-2's recurrence, token by token: the definition that the chunked algorithm is held to.

Shapes: B batch, L tokens, h heads, P head width, N state size.
Source: Mamba-2 (Dao & Gu 2024), equation 1 with a scalar decay for each head and one group.
"""

import torch
from torch import Tensor


def ssd_reference(
    x_BLhP: Tensor,
    dt_BLh: Tensor,
    A_h: Tensor,
    key_BLN: Tensor,
    query_BLN: Tensor,
    state_BhPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S <- exp(dt A) S + dt x (outer) key;  y = S query. Arguments and results as `mvar.ops.ssd.ssd`."""
    B, L, h, P = x_BLhP.shape
    if state_BhPN is None:
        state_BhPN = x_BLhP.new_zeros(B, h, P, key_BLN.shape[-1])
    y_BhP = []
    for i in range(L):
        dt_Bh = dt_BLh[:, i]
        written_BhPN = torch.einsum("bh,bhp,bn->bhpn", dt_Bh, x_BLhP[:, i], key_BLN[:, i])
        state_BhPN = torch.exp(dt_Bh * A_h)[..., None, None] * state_BhPN + written_BhPN
        y_BhP.append(torch.einsum("bhpn,bn->bhp", state_BhPN, query_BLN[:, i]))
    return torch.stack(y_BhP, dim=1), state_BhPN
