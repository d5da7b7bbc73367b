"""One chunk of the state-space scan for drawing: no gradient, few passes over memory.

Shapes: B batch, Q tokens of the chunk, h heads, P head width, E = h P channels, N state size.
Source: as `mvar.ops.ssd`, whose formula this is.
"""

import torch
from torch import Tensor

from mvar.ops.decay import log_decay, running_sum


def ssd_chunk(
    x_BQhP: Tensor, dt_BQh: Tensor, A_h: Tensor, key_BQN: Tensor, query_BQN: Tensor, state_BNE: Tensor
) -> tuple[Tensor, Tensor]:
    """Scan these tokens.

    Args:
        x_BQhP, key_BQN, query_BQN: as of `ssd`, in any float dtype, which the products of tokens with tokens take.
        dt_BQh, A_h: as of `ssd`, at least float32.
        state_BNE: before the first token, at least float32.

    Returns:
        y (B, Q, h, P), of x's dtype, and the state after the last token.
    """
    (B, Q, h, P), dtype = x_BQhP.shape, x_BQhP.dtype
    c_BhQ, rest_BhQ = running_sum(log_decay(dt_BQh, A_h).transpose(1, 2).contiguous(), 2)
    dt_BhQ = dt_BQh.transpose(1, 2)

    pairs_BQQ = (query_BQN @ key_BQN.mT).to(c_BhQ.dtype).tril_()
    mix_BhQQ = (c_BhQ[..., None] - c_BhQ[..., None, :]).clamp_(max=0).exp_().mul_(pairs_BQQ[:, None])
    y_BhQP = mix_BhQQ.to(dtype) @ (x_BQhP * _by_token(dt_BhQ * (-rest_BhQ).exp(), dtype)).transpose(1, 2)

    read_BQE = _product(query_BQN, state_BNE.to(dtype))
    y_BQhP = read_BQE.view(B, Q, h, P).mul_(_by_token(c_BhQ.exp(), dtype))
    y_BQhP.addcmul_(y_BhQP.transpose(1, 2), _by_token(rest_BhQ.exp(), dtype))

    last_Bh1, last_rest_Bh1 = c_BhQ[..., -1:], rest_BhQ[..., -1:]
    weight_BhQ = (last_Bh1 - c_BhQ).add_(last_rest_Bh1 - rest_BhQ).exp_().mul_(dt_BhQ)
    written_BNE = _product(key_BQN.mT, (x_BQhP * _by_token(weight_BhQ, dtype)).flatten(2))
    keep_B1E = last_Bh1.exp().expand(B, h, P).reshape(B, 1, h * P)
    return y_BQhP, torch.addcmul(written_BNE.to(state_BNE.dtype), keep_B1E, state_BNE)


def _by_token(factor_BhQ: Tensor, dtype: torch.dtype) -> Tensor:
    """As (B, Q, h, 1), to multiply tokens with."""
    return factor_BhQ.to(dtype).transpose(1, 2)[..., None]


def _product(a_Bij: Tensor, b_Bjk: Tensor) -> Tensor:
    """a b; for one image without the batch dimension, for which a CPU has quicker products."""
    return a_Bij @ b_Bjk if len(a_Bij) > 1 else (a_Bij[0] @ b_Bjk[0])[None]
