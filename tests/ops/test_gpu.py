"""The Triton kernels against PyTorch's operations, in Triton's interpreter; and what they compile to for real cards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mvar.ops.attention import split_heads
from mvar.ops.mamba import MambaState, MambaWeights, mamba
from mvar.ops.noise import uniform
from mvar.ops.norms import adaln, gated_sum, gated_sum_adaln

pytest.importorskip("triton")

from mvar.ops.gpu import noise, norms
from mvar.ops.gpu.mamba import between_projections

B, P, N, h = 2, 64, 64, 2
E, D = h * P, h * P + 2 * N
EPS = 1e-5


def close(found, expected, dtype):
    bound = 4e-6 if dtype == torch.float32 else 3e-2  # as PyTorch's own operations differ from float64
    assert found.dtype == expected.dtype or dtype == torch.float32
    apart = (found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)
    assert apart < bound, apart


@pytest.fixture(autouse=True)
def torch_only(monkeypatch):
    monkeypatch.setenv("MVAR_OPS", "torch")
    torch.manual_seed(0)


def mamba_inputs(L, dtype):
    weights = MambaWeights(
        torch.randn(D, 4) * 0.3, torch.randn(D) * 0.1, torch.randn(h), torch.rand(h), torch.randn(h), torch.rand(E) + 0.5
    )
    return torch.randn(B, L, E + D + h).to(dtype), weights, MambaState(torch.randn(B, 3, D), torch.randn(B, h, P, N))


def by_kernels(projected, weights, state):
    conv_weight, conv_bias, dt_bias, A_log, skip, norm = weights
    tail, ssm = (None, None) if state is None else state
    return between_projections(projected, (conv_weight, conv_bias, dt_bias, -A_log.exp(), skip, norm), tail, ssm, EPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("L", "resumed"), [(1, False), (2, True), (33, True), (70, False)])
def test_mamba_gives_the_same_tokens_and_states(L, resumed, dtype):
    projected, weights, state = mamba_inputs(L, dtype)
    state = state if resumed else None
    with torch.no_grad():
        expected, (tail, ssm) = mamba(projected, weights, state)
        found = by_kernels(projected, weights, state)
    for one, other in zip(found, (expected, tail, ssm), strict=True):
        close(one, other, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("resumed", [False, True])
def test_mamba_has_the_same_gradients(dtype, resumed):
    """Through the tokens of two calls, the second of which takes the first one's state."""
    projected, weights, state = mamba_inputs(37, dtype)
    weights = [weight.float() for weight in weights]
    dout, dssm, dtail = torch.randn(B, 37, E), torch.randn(B, h, P, N), torch.randn(B, 3, D)

    def gradients(run, exact):
        inputs = [t.to(exact or t.dtype).requires_grad_() for t in (projected, *weights, state.ssm_BhPN)]
        before = MambaState(state.tail_BVD.to(exact or torch.float32), inputs[-1]) if resumed else None
        out, tail, ssm = run(inputs[0], MambaWeights(*inputs[1:7]), before)
        loss = (out * dout).sum() + (ssm * dssm).sum() + (tail * dtail).sum()
        return torch.autograd.grad(loss, inputs if resumed else inputs[:-1])

    def by_torch(*arguments):
        out, (tail, ssm) = mamba(*arguments)
        return out, tail, ssm

    for found, expected in zip(gradients(by_kernels, None), gradients(by_torch, torch.float64), strict=True):
        close(found, expected.to(found.dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", ["sum", "norm", "both"])
def test_adaln_gives_the_same_numbers_and_gradients(parts, dtype):
    L, C = 11, 96
    x, y, vectors = torch.randn(B, L, C), torch.randn(B, L, C).to(dtype), torch.randn(B, 3, C)
    dsum, dout = torch.randn(B, L, C), torch.randn(B, L, C).to(dtype)

    def run(ours):
        inputs = [t.clone().requires_grad_() for t in (x, y, vectors)]
        gate, scale, shift = inputs[2].unbind(1)
        add, norm = parts != "norm", parts != "sum"
        if ours:
            added = (gate, inputs[1]) if add else (None, None)
            normed = (scale, shift) if norm else (None, None)
            after, out = norms.adaln(inputs[0], *added, *normed, dtype, 1e-6)
        elif add:
            both = gated_sum_adaln(inputs[0], gate, inputs[1], scale, shift) if norm else None
            after, out = both or (gated_sum(inputs[0], gate, inputs[1]), None)
        else:
            after, out = None, adaln(inputs[0], scale, shift, dtype)
        found = ([after] if add else []) + ([out] if norm else [])
        wanted = ([dsum] if add else []) + ([dout] if norm else [])
        grads = torch.autograd.grad(found, inputs, wanted, allow_unused=True)
        return [*found, *(grad for grad in grads if grad is not None)]

    for found, expected in zip(run(True), run(False), strict=True):
        close(found, expected, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_are_the_same_with_their_gradients(dtype):
    qkv, log_scale = torch.randn(B, 35, 3, 2, 64).to(dtype), nn.Parameter(torch.randn(2))
    expected = torch.stack(list(split_heads(qkv.requires_grad_(), log_scale)))
    found = norms.heads(qkv, log_scale.exp())
    dout = torch.randn_like(found)
    close(found, expected, dtype)
    pairs = (torch.autograd.grad(out, (qkv, log_scale), dout) for out in (found, expected))
    for one, other in zip(*pairs, strict=True):
        close(one, other, dtype)


def test_noise_has_the_same_bits():
    seed, index, V, tokens = 2**63 - 5, [3, 2**63 - 1], 100, 5
    at = torch.randint(0, V, (2, tokens, 7))
    expected = uniform(seed, index, 4, (tokens, V)).gather(-1, at)
    assert torch.equal(noise.uniform(seed, index, 4, tokens, V, at), expected)


@pytest.mark.parametrize("capability", [80, 90, 120])
def test_kernels_compile_for_real_cards_and_stay_in_registers(capability, tmp_path):
    """Capabilities of A100, H100 and the RTX cards of 2025, whose programs share 99 KB at most."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compiled.py")
    command = [sys.executable, "-W", "ignore", str(script), str(capability)]
    found = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 22
    for name, kernel in found.items():
        assert kernel["shared"] <= 99 * 1024, name
        most = {"scan_backward bf16": 512, "scan_backward fp32": 2048, "scan_forward fp32": 1024}.get(name, 256)
        assert kernel["stack"] <= most, f"{name} spills {kernel['stack']} bytes a thread"
