"""The state-space scan: one program for each image and head walks the chunks with its state in registers.

Shapes and formulas: `mvar.ops.ssd`. Q tokens of a chunk; a state lies in memory as (N, P).
"""

import triton
import triton.language as tl

from mvar.ops.gpu.launch import dot, number


@triton.jit
def decay_sums(dt_Q, A):
    """The running sum of dt A, bounded as in `mvar.ops.ssd.log_decay`, and its end; each in two floats, whose sum has
    the precision of a double."""
    a_Q = tl.maximum(dt_Q * A, -104.0).to(tl.float64)
    exact_Q, end = tl.cumsum(a_Q), tl.sum(a_Q)
    c_Q, last = exact_Q.to(tl.float32), end.to(tl.float32)
    return c_Q, (exact_Q - c_Q.to(tl.float64)).to(tl.float32), last, (end - last.to(tl.float64)).to(tl.float32)


@triton.jit(do_not_specialize=["L"])
def scan_forward(
    xbc_ptr, dt_ptr, A_log_ptr, state_ptr, y_ptr, next_ptr, before_ptr, L, heads,
    HAS_STATE: tl.constexpr, SAVE: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """Tokens, keys and queries lie in the rows of xbc. SAVE keeps the state before each chunk, (B, h, chunks, N, P)."""
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p, n, q = tl.arange(0, P), tl.arange(0, N), tl.arange(0, Q)
    dtype = xbc_ptr.dtype.element_ty
    E = heads * P
    A, head = -tl.exp(number(A_log_ptr, h)), b * heads + h
    at_NP = n[:, None] * P + p[None, :]
    state_NP = tl.load(state_ptr + head * N * P + at_NP) if HAS_STATE else tl.zeros((N, P), tl.float32)
    for start in range(0, L, Q):
        if SAVE:
            tl.store(before_ptr + (head * tl.cdiv(L, Q) + start // Q) * N * P + at_NP, state_NP.to(dtype))
        t = start + q
        live, row = t < L, b * L + t
        at_Q1 = row[:, None] * (E + 2 * N)
        x_QP = tl.load(xbc_ptr + at_Q1 + h * P + p[None, :], mask=live[:, None], other=0.0)
        key_QN = tl.load(xbc_ptr + at_Q1 + E + n[None, :], mask=live[:, None], other=0.0)
        query_QN = tl.load(xbc_ptr + at_Q1 + E + N + n[None, :], mask=live[:, None], other=0.0)
        dt_Q = tl.load(dt_ptr + row * heads + h, mask=live, other=0.0)
        c_Q, rest_Q, end, end_rest = decay_sums(dt_Q, A)
        since_QQ = (c_Q[:, None] - c_Q[None, :]) + (rest_Q[:, None] - rest_Q[None, :])
        mix_QQ = dot(query_QN, tl.trans(key_QN)) * tl.exp(tl.minimum(since_QQ, 0.0)) * dt_Q[None, :]
        mix_QQ = tl.where(q[:, None] >= q[None, :], mix_QQ, 0.0)
        y_QP = dot(mix_QQ.to(dtype), x_QP) + tl.exp(c_Q)[:, None] * dot(query_QN, state_NP.to(dtype))
        tl.store(y_ptr + row[:, None] * E + h * P + p[None, :], y_QP.to(dtype), mask=live[:, None])
        weight_Q = dt_Q * tl.exp((end - c_Q) + (end_rest - rest_Q))
        state_NP = tl.exp(end) * state_NP + dot(tl.trans(key_QN), (x_QP * weight_Q[:, None]).to(dtype))
    tl.store(next_ptr + head * N * P + at_NP, state_NP)


@triton.jit(do_not_specialize=["L"])
def scan_backward(
    xbc_ptr, dt_ptr, A_log_ptr, skip_ptr, before_ptr, dy_ptr, dnext_ptr, dxbc_ptr, dt_bias_ptr, raw_ptr, ddt_ptr,
    dA_log_ptr, dkey_ptr, dquery_ptr, dstate_ptr, L, heads, stride,
    HAS_DNEXT: tl.constexpr, P: tl.constexpr, N: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """The chunks last to first, with the gradient of the state in registers.

    dx, with the skip's share, goes into the rows of dxbc; ddt is that of the steps before their softplus (raw, in rows
    of `stride`). Keys and queries, which heads share, get a gradient from each head, (B, h, L, N).
    """
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    p, n, q = tl.arange(0, P), tl.arange(0, N), tl.arange(0, Q)
    dtype = xbc_ptr.dtype.element_ty
    E = heads * P
    A, skip, dt_bias = -tl.exp(number(A_log_ptr, h)), number(skip_ptr, h), number(dt_bias_ptr, h)
    head, at_NP, chunks = b * heads + h, n[:, None] * P + p[None, :], tl.cdiv(L, Q)
    dstate_NP = tl.load(dnext_ptr + head * N * P + at_NP) if HAS_DNEXT else tl.zeros((N, P), tl.float32)
    dA = 0.0
    for i in range(chunks):
        chunk = chunks - 1 - i
        t = chunk * Q + q
        live, row = t < L, b * L + t
        at_Q1, at_QP = row[:, None] * (E + 2 * N), row[:, None] * E + h * P + p[None, :]
        x_QP = tl.load(xbc_ptr + at_Q1 + h * P + p[None, :], mask=live[:, None], other=0.0)
        key_QN = tl.load(xbc_ptr + at_Q1 + E + n[None, :], mask=live[:, None], other=0.0)
        query_QN = tl.load(xbc_ptr + at_Q1 + E + N + n[None, :], mask=live[:, None], other=0.0)
        dy_QP = tl.load(dy_ptr + at_QP, mask=live[:, None], other=0.0)
        dt_Q = tl.load(dt_ptr + row * heads + h, mask=live, other=0.0)
        before_NP = tl.load(before_ptr + (head * chunks + chunk) * N * P + at_NP)
        c_Q, rest_Q, end, end_rest = decay_sums(dt_Q, A)
        last = tl.minimum(L - chunk * Q, Q) - 1

        # What the chunk wrote to the state; no decay follows the last token's writing.
        until_Q, low_NP = tl.exp((end - c_Q) + (end_rest - rest_Q)), dstate_NP.to(dtype)
        du_QP = dot(key_QN, low_NP) * until_Q[:, None]
        dkey_QN = dot((x_QP * (dt_Q * until_Q)[:, None]).to(dtype), tl.trans(low_NP))
        slope_Q = tl.where(q < last, tl.sum(du_QP * x_QP, 1) * dt_Q, 0.0)
        dend = tl.sum(slope_Q) + tl.exp(end) * tl.sum(dstate_NP * before_NP)
        dc_Q = tl.where(q == last, dend, 0.0) - slope_Q

        # What it read from the state before it.
        dread_QP = (dy_QP * tl.exp(c_Q)[:, None]).to(dtype)
        dc_Q += tl.sum(dread_QP * dot(query_QN, before_NP), 1)
        dquery_QN = dot(dread_QP, tl.trans(before_NP))
        dstate_NP = tl.exp(end) * dstate_NP + dot(tl.trans(query_QN), dread_QP)

        # Inside the chunk.
        since_QQ = (c_Q[:, None] - c_Q[None, :]) + (rest_Q[:, None] - rest_Q[None, :])
        decay_QQ = tl.where(q[:, None] >= q[None, :], tl.exp(tl.minimum(since_QQ, 0.0)), 0.0)
        mix_QQ = decay_QQ * dot(query_QN, tl.trans(key_QN))
        dmix_QQ = dot(dy_QP, tl.trans(x_QP)) * dt_Q[None, :]
        du_QP += dot(tl.trans(mix_QQ.to(dtype)), dy_QP)
        slope_QQ = tl.where(q[:, None] > q[None, :], mix_QQ * dmix_QQ, 0.0)
        dc_Q += tl.sum(slope_QQ, 1) - tl.sum(slope_QQ, 0)
        dpairs_QQ = (dmix_QQ * decay_QQ).to(dtype)
        dquery_QN += dot(dpairs_QQ, key_QN)
        dkey_QN += dot(tl.trans(dpairs_QQ), query_QN)

        da_Q = tl.where(dt_Q * A > -104.0, tl.cumsum(dc_Q, reverse=True), 0.0)
        dA += tl.sum(da_Q * dt_Q)
        raw_Q = tl.load(raw_ptr + row * stride + h, mask=live, other=0.0).to(tl.float32) + dt_bias
        ddt_Q = (tl.sum(du_QP * x_QP, 1) + da_Q * A) / (1 + tl.exp(-raw_Q))
        tl.store(ddt_ptr + row * heads + h, ddt_Q, mask=live)
        dx_QP = du_QP * dt_Q[:, None] + dy_QP * skip
        tl.store(dxbc_ptr + at_Q1 + h * P + p[None, :], dx_QP.to(dtype), mask=live[:, None])
        at_QN = (head * L + t)[:, None] * N + n[None, :]
        tl.store(dkey_ptr + at_QN, dkey_QN.to(dtype), mask=live[:, None])
        tl.store(dquery_ptr + at_QN, dquery_QN.to(dtype), mask=live[:, None])
    tl.store(dA_log_ptr + head, dA * A)
    tl.store(dstate_ptr + head * N * P + at_NP, dstate_NP)
