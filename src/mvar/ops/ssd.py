"""Mamba-2's state-space scan in chunks (SSD): matrix products inside a chunk, a state carried between chunks.

Shapes: B batch, L tokens, h heads, P head width, E = h P channels, N state size, n chunks, Q tokens of a chunk.
Source: Mamba-2 (Dao & Gu 2024), section 6; one group, so `key` (its B) and `query` (its C) are shared by the heads.

With c the running sum of dt A inside a chunk and S the state before it, token i of the chunk has

    y_i = sum_{j <= i} exp(c_i - c_j) (query_i . key_j) dt_j x_j  +  exp(c_i) query_i S

No exponent is ever positive, and none is a difference of rounded sums: c has a rest r (`running_sum`), so exp(c_i -
c_j) of the rounded c is multiplied by exp(r_i) and exp(-r_j), in passes that copy the tokens anyway.

The backward pass, written by hand, moves less memory than autograd's. A pair's slope w_ij = dy_i . (its part of y_i)
enters dc_i and leaves dc_j; both sums are of the same numbers, so that they cancel in dA whatever dtype these are
rounded to. What no decay changes (j = i, the writing of the chunk's last token) is left out: it would drown the rest.

Inputs in bfloat16 keep their dtype in products; steps, decays, the carried state and sums over tokens are float32.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mvar.ops.numerics import without_autocast

# About as long as the state is wide, so that a chunk's Q x Q products cost as much as its state's.
LONGEST_CHUNK = 72
# exp of this is 0: decaying more forgets no more. The bound keeps sums finite and their rounding small.
FORGOTTEN = {torch.float32: -104.0, torch.float64: -746.0}


def log_decay(dt_BLh: Tensor, A_h: Tensor) -> Tensor:
    """dt A, where the state decays by exp(dt A) at each token, bounded where that leaves exp(dt A) unchanged."""
    a_BLh = dt_BLh * A_h
    return a_BLh.clamp(min=FORGOTTEN[a_BLh.dtype])


def running_sum(a: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The running sum c along a dimension, and the rest r that its rounding drops: the exact sum is c + r."""
    c = a.cumsum(dim)
    rounded = torch.diff(c, dim=dim, prepend=torch.zeros_like(c.narrow(dim, 0, 1)))  # the steps that c has taken
    return c, (a - rounded).cumsum(dim)


def ssd(
    x_BLhP: Tensor, dt_BLh: Tensor, A_h: Tensor, key_BLN: Tensor, query_BLN: Tensor, state_BhPN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scan the tokens of this call in equal chunks, differentiable once in every argument.

    Tokens, keys and queries share any float dtype, which y has; steps > 0, A < 0 and the state are float32 or float64.
    Returns y (B, L, h, P) and the state after the last token (B, h, P, N).
    """
    B, L, h, P = x_BLhP.shape
    N = key_BLN.shape[-1]
    n = -(-L // LONGEST_CHUNK)
    Q = -(-L // n)
    with without_autocast(x_BLhP):
        state_BNE = None if state_BhPN is None else state_BhPN.permute(0, 3, 1, 2).reshape(B, N, h * P)
        # Steps of 0 have no effect. They come first: after the last token they would blur the gradients of its decay.
        tensors = (x_BLhP, dt_BLh, log_decay(dt_BLh, A_h), key_BLN, query_BLN)
        padded = (F.pad(t, (0, 0) * (t.dim() - 2) + (n * Q - L, 0)) if n * Q > L else t for t in tensors)
        y_BLhP, state_BNE = _ChunkedScan.apply(*padded, state_BNE, Q)
    return y_BLhP[:, n * Q - L :], state_BNE.view(B, N, h, P).permute(0, 2, 3, 1)


class _ChunkedScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BLhP: Tensor,
        dt_BLh: Tensor,
        a_BLh: Tensor,
        key_BLN: Tensor,
        query_BLN: Tensor,
        state_BNE: Tensor | None,
        Q: int,
    ) -> tuple[Tensor, Tensor]:
        x_BnQhP, dt_BnQh, a_BnQh, key_BnQN, query_BnQN = (
            t.unflatten(1, (-1, Q)) for t in (x_BLhP, dt_BLh, a_BLh, key_BLN, query_BLN)
        )
        n, dtype = x_BnQhP.shape[1], x_BnQhP.dtype
        c_BnQh, rest_BnQh = running_sum(a_BnQh, 2)

        # Inside each chunk: a causal product with decays, head by head.
        pairs_BnQQ = (query_BnQN @ key_BnQN.mT).tril_()
        mix_zQQ = _decays(c_BnQh).to(dtype).mul_(pairs_BnQQ[:, :, None]).flatten(0, 2)
        y_zQP = mix_zQQ @ _by_head(x_BnQhP, (dt_BnQh * (-rest_BnQh).exp()).to(dtype))
        y_BnQhP = _by_token(y_zQP, rest_BnQh.exp().to(dtype))

        # Between chunks: what each writes to the state, the state after each, and what it reads from the one before.
        weight_BnQh = _until_end(c_BnQh, rest_BnQh).mul_(dt_BnQh).to(dtype)
        written_BnNE = (key_BnQN.mT @ (x_BnQhP * weight_BnQh[..., None]).flatten(-2)).to(c_BnQh.dtype)
        keep_Bn1E = _keep(c_BnQh, x_BnQhP.shape[-1])
        states = [torch.zeros_like(written_BnNE[:, 0]) if state_BNE is None else state_BNE]
        for i in range(n):
            states.append(torch.addcmul(written_BnNE[:, i], keep_Bn1E[:, i], states[-1]))
        states_BmNE = torch.stack(states, dim=1).to(dtype)  # m = n + 1
        first = 1 if state_BNE is None else 0  # the first chunk with something to read
        read_BrQE = query_BnQN[:, first:] @ states_BmNE[:, first:-1]
        since_start_BrQh1 = c_BnQh[:, first:].exp().to(dtype)[..., None]
        y_BnQhP[:, first:].addcmul_(since_start_BrQh1, read_BrQE.view_as(y_BnQhP[:, first:]))

        ctx.save_for_backward(x_BnQhP, dt_BnQh, c_BnQh, rest_BnQh, key_BnQN, query_BnQN, states_BmNE)
        ctx.first = first
        ctx.set_materialize_grads(False)
        return y_BnQhP.flatten(1, 2), states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLhP: Tensor | None, dstate_BNE: Tensor | None) -> tuple[Tensor | None, ...]:
        x_BnQhP, dt_BnQh, c_BnQh, rest_BnQh, key_BnQN, query_BnQN, states_BmNE = ctx.saved_tensors
        first, dtype, exact, (n, Q, h, P) = ctx.first, x_BnQhP.dtype, c_BnQh.dtype, x_BnQhP.shape[1:]
        last = n if dstate_BNE is not None else n - 1  # chunks whose writing is used: all before this one
        dy_BnQhP = torch.zeros_like(x_BnQhP) if dy_BLhP is None else dy_BLhP.unflatten(1, (n, Q))

        with without_autocast(x_BnQhP):
            # Inside each chunk.
            pairs_BnQQ = (query_BnQN @ key_BnQN.mT).tril_()
            decay_BnhQQ = _decays(c_BnQh).to(dtype)
            mix_BnhQQ = decay_BnhQQ * pairs_BnQQ[:, :, None]
            from_BnQh = (-rest_BnQh).exp()
            dy_zQP = _by_head(dy_BnQhP, rest_BnQh.exp().to(dtype))
            dmix_BnhQQ = (dy_zQP @ _by_head(x_BnQhP, (dt_BnQh * from_BnQh).to(dtype)).mT).view_as(mix_BnhQQ)
            du_BnQhP = _by_token(mix_BnhQQ.flatten(0, 2).mT @ dy_zQP, from_BnQh.to(dtype))
            slope_BnhQQ = mix_BnhQQ.mul_(dmix_BnhQQ)
            slope_BnhQQ.diagonal(dim1=-2, dim2=-1).zero_()
            dc_BnhQ = slope_BnhQQ.sum(-1, dtype=exact).sub_(slope_BnhQQ.sum(-2, dtype=exact))
            dc_BnQh = dc_BnhQ.transpose(2, 3).contiguous()
            dpairs_BnQQ = dmix_BnhQQ.mul_(decay_BnhQQ).sum(2).tril_()
            dquery_BnQN = dpairs_BnQQ @ key_BnQN
            dkey_BnQN = dpairs_BnQQ.mT @ query_BnQN

            # What chunks read, and with it the gradient of the state after each chunk, last to first.
            since_start_BrQh1 = c_BnQh[:, first:].exp().to(dtype)[..., None]
            dread_BrQE = (dy_BnQhP[:, first:] * since_start_BrQh1).flatten(-2)
            before_BrNE = states_BmNE[:, first:-1]
            dquery_BnQN[:, first:] += dread_BrQE @ before_BrNE.mT
            dbefore_BrNE = (query_BnQN[:, first:].mT @ dread_BrQE).to(exact)
            slope_BrQE = dread_BrQE.mul_(query_BnQN[:, first:] @ before_BrNE)
            dc_BnQh[:, first:] += slope_BrQE.unflatten(-1, (h, P)).sum(-1, dtype=exact)
            keep_Bn1E = _keep(c_BnQh, P)
            dafter: list[Tensor | None] = [dstate_BNE]
            for i in reversed(range(first, n)):
                after, before_BNE = dafter[-1], dbefore_BrNE[:, i - first]
                dafter.append(before_BNE if after is None else torch.addcmul(before_BNE, keep_Bn1E[:, i], after))
            dinitial_BNE = dafter.pop() if first == 0 else None

            # What chunks wrote.
            if last > 0:
                dafter_BwNE = torch.stack([d for d in reversed(dafter) if d is not None], dim=1)
                carried_BwhP = (keep_Bn1E[:, :last] * states_BmNE[:, :last] * dafter_BwNE).sum(2).unflatten(-1, (h, P))
                dafter_BwNE = dafter_BwNE.to(dtype)
                until_end_BwQh1 = _until_end(c_BnQh[:, :last], rest_BnQh[:, :last]).to(dtype)[..., None]
                dwritten_BwQhP = (key_BnQN[:, :last] @ dafter_BwNE).unflatten(-1, (h, P)).mul_(until_end_BwQh1)
                du_BnQhP[:, :last] += dwritten_BwQhP
                slope_BwQh = dwritten_BwQhP.mul_(x_BnQhP[:, :last]).sum(-1, dtype=exact).mul_(dt_BnQh[:, :last])
                slope_BwQh[:, :, -1] = 0
                dc_BnQh[:, :last] -= slope_BwQh
                dc_BnQh[:, :last, -1] += slope_BwQh.sum(2) + carried_BwhP.sum(-1)
                weighted_BwQhP = x_BnQhP[:, :last] * until_end_BwQh1.mul_(dt_BnQh[:, :last, ..., None].to(dtype))
                dkey_BnQN[:, :last] += weighted_BwQhP.flatten(-2) @ dafter_BwNE.mT

            ddt_BnQh = (du_BnQhP * x_BnQhP).sum(-1, dtype=exact)
            da_BnQh = dc_BnQh.flip(2).cumsum(2).flip(2)
            dx_BnQhP = du_BnQhP.mul_(dt_BnQh.to(dtype)[..., None])
        chunked = (dx_BnQhP, ddt_BnQh, da_BnQh, dkey_BnQN, dquery_BnQN)
        return *(t.flatten(1, 2) for t in chunked), dinitial_BNE, None


def _decays(c_BnQh: Tensor) -> Tensor:
    """exp(c_i - c_j) for j <= i, (B, n, h, Q, Q); 1 above the diagonal, where it only ever meets zeros."""
    c_BnhQ = c_BnQh.transpose(2, 3).contiguous()
    return (c_BnhQ[..., :, None] - c_BnhQ[..., None, :]).clamp_(max=0).exp_()


def _until_end(c_BnQh: Tensor, rest_BnQh: Tensor) -> Tensor:
    """What is left at the chunk's end of what each token writes, (B, n, Q, h)."""
    return (c_BnQh[:, :, -1:] - c_BnQh).add_(rest_BnQh[:, :, -1:] - rest_BnQh).exp_()


def _keep(c_BnQh: Tensor, P: int) -> Tensor:
    """What is left of the state after a whole chunk, (B, n, 1, E)."""
    return c_BnQh[:, :, -1:].exp().repeat_interleave(P, dim=-1)


def _by_head(x_BnQhP: Tensor, factor_BnQh: Tensor) -> Tensor:
    """The product as (z, Q, P), z = B n h, for matrices that differ by head."""
    x_BnhQP = x_BnQhP.transpose(2, 3)
    out_BnhQP = torch.empty(x_BnhQP.shape, dtype=x_BnQhP.dtype, device=x_BnQhP.device)
    torch.mul(x_BnhQP, factor_BnQh.transpose(2, 3)[..., None], out=out_BnhQP)
    return out_BnhQP.flatten(0, 2)


def _by_token(y_zQP: Tensor, factor_BnQh: Tensor) -> Tensor:
    """The product of what `_by_head` laid out, as (B, n, Q, h, P)."""
    B, n, Q, h = factor_BnQh.shape
    y_BnQhP = y_zQP.view(B, n, h, Q, -1).transpose(2, 3)
    out_BnQhP = torch.empty(y_BnQhP.shape, dtype=y_zQP.dtype, device=y_zQP.device)
    return torch.mul(y_BnQhP, factor_BnQh[..., None], out=out_BnQhP)
