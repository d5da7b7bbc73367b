"""One chunk of the state-space scan for drawing: no gradient, few passes over memory.

Shapes: B batch, Q tokens of the chunk, h heads, P head width, E = h P channels, N state size.
Source: as `mvar.ops.ssd`, whose formula this is with dt_j written as exp(log dt_j).
"""

import torch
from torch import Tensor

MOST = 80.0  # exponents above the diagonal, which meet zeros: large enough for any dt, and exp of it is finite


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
    c_BhQ = (dt_BQh * A_h).cumsum(1).transpose(1, 2).contiguous()
    from_BhQ = dt_BQh.log().transpose(1, 2) - c_BhQ

    pairs_BQQ = (query_BQN @ key_BQN.mT).to(c_BhQ.dtype).tril_()
    mix_BhQQ = (c_BhQ[..., None] + from_BhQ[..., None, :]).clamp_(max=MOST).exp_().mul_(pairs_BQQ[:, None])
    y_BhQP = mix_BhQQ.to(dtype) @ x_BQhP.transpose(1, 2)

    read_BQE = _product(query_BQN, state_BNE.to(dtype))
    since_start_BQh1 = c_BhQ.exp().to(dtype).transpose(1, 2)[..., None]
    y_BQhP = read_BQE.view(B, Q, h, P).mul_(since_start_BQh1).add_(y_BhQP.transpose(1, 2))

    last_Bh1 = c_BhQ[..., -1:]
    until_end_BQh1 = (last_Bh1 + from_BhQ).exp_().to(dtype).transpose(1, 2)[..., None]
    written_BNE = _product(key_BQN.mT, (x_BQhP * until_end_BQh1).flatten(2))
    keep_B1E = last_Bh1.exp().expand(B, h, P).reshape(B, 1, h * P)
    return y_BQhP, torch.addcmul(written_BNE.to(state_BNE.dtype), keep_B1E, state_BNE)


def _product(a_Bij: Tensor, b_Bjk: Tensor) -> Tensor:
    """a b; for one image without the batch dimension, for which a CPU has quicker products."""
    return a_Bij @ b_Bjk if len(a_Bij) > 1 else (a_Bij[0] @ b_Bjk[0])[None]
