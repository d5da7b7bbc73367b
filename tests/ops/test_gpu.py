"""The Triton kernels against PyTorch's operations, in Triton's interpreter; and what they compile to for real cards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from triton.runtime.interpreter import InterpretedFunction

from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.ops.attention import split_heads
from mvar.ops.gpu import check, noise, norms
from mvar.ops.gpu.mamba import between_projections
from mvar.ops.mamba import MambaState, MambaWeights, mamba
from mvar.ops.noise import gumbel, key_bits, uniform
from mvar.ops.norms import adaln, gated_sum, gated_sum_adaln

B, P, N, h = 2, 64, 64, 2
E, D = h * P, h * P + 2 * N
EPS = 1e-5


def close(found, expected, dtype):
    bound = 4e-6 if dtype == torch.float32 else 3e-2  # as PyTorch's own operations differ from float64
    assert found.dtype == expected.dtype or dtype == torch.float32
    apart = (found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-12)
    assert apart < bound, apart


@pytest.fixture(autouse=True, scope="module")
def prepared_once_a_launch():
    """Triton's interpreter prepares the language again for each function that a kernel calls: a third of its time."""
    prepared = InterpretedFunction.__call__

    def call(self, *given, **named):
        ours = self.fn.__module__.startswith("mvar.")  # these use nothing that the kernel's launch has not prepared
        return self.rewrite()(*given, **named) if ours else prepared(self, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", call)
        yield


@pytest.fixture(autouse=True)
def torch_only(monkeypatch):
    monkeypatch.setenv("MVAR_OPS", "torch")
    torch.manual_seed(0)


def mamba_inputs(L, dtype):
    weights = MambaWeights(
        torch.randn(D, 4) * 0.3,
        torch.randn(D) * 0.1,
        torch.randn(h),
        torch.rand(h),
        torch.randn(h),
        torch.rand(E) + 0.5,
    )
    return torch.randn(B, L, E + D + h).to(dtype), weights, MambaState(torch.randn(B, 3, D), torch.randn(B, h, P, N))


def by_kernels(projected, weights, state):
    return between_projections(projected, weights, *(state or (None, None)), EPS)


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


@pytest.mark.parametrize(("resumed", "dtype"), [(True, torch.float32), (False, torch.bfloat16)])
def test_gradients_of_mamba_are_as_close_to_the_exact_ones_as_those_of_pytorch(dtype, resumed):
    L = 40  # several chunks
    projected, weights, state = mamba_inputs(L, dtype)
    dout, dssm, dtail = torch.randn(B, L, E), torch.randn(B, h, P, N), torch.randn(B, 3, D)

    def gradients(run, exact):
        inputs = [t.to(exact or t.dtype).requires_grad_() for t in (projected, *weights, state.ssm_BhPN)]
        before = MambaState(state.tail_BVD.to(exact or torch.float32), inputs[-1]) if resumed else None
        out, tail, ssm = run(inputs[0], MambaWeights(*inputs[1:7]), before)
        loss = (out * dout).sum() + (ssm * dssm).sum() + (tail * dtail).sum()
        return torch.autograd.grad(loss, inputs if resumed else inputs[:-1])

    def by_torch(*arguments):
        out, (tail, ssm) = mamba(*arguments)
        return out, tail, ssm

    exact = gradients(by_torch, torch.float64)
    for found, other, expected in zip(gradients(by_kernels, None), gradients(by_torch, None), exact, strict=True):
        ours, theirs = (float((one.double() - expected).norm() / expected.norm()) for one in (found, other))
        assert ours < 2 * theirs + (2e-6 if dtype == torch.float32 else 1e-2)


def test_a_second_call_goes_on_where_the_first_ended_with_a_gradient_too(monkeypatch):
    projected, weights, _ = mamba_inputs(24, torch.float32)

    def gradient():
        given, state, outs = projected.clone().requires_grad_(), None, []
        for part in given.split(12, dim=1):
            out, state = mamba(part, weights, state)
            outs.append(out)
        return torch.autograd.grad(torch.cat(outs, dim=1).square().sum(), given)[0]

    expected = gradient()
    monkeypatch.setattr("mvar.ops.mamba.runs_kernels", lambda *_: True)
    close(gradient(), expected, torch.float32)
    with torch.no_grad():  # a tail that is a part of other numbers
        tail = torch.randn(B, 9, D)[:, 3:6]
        state = MambaState(tail, torch.randn(B, h, P, N))
        found = by_kernels(projected, weights, state)
        monkeypatch.setattr("mvar.ops.mamba.runs_kernels", lambda *_: False)
        close(found[0], mamba(projected, weights, state)[0], torch.float32)


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
            added, normed = (gate, inputs[1]) if add else None, (scale, shift) if norm else None
            after, out = norms.adaln(inputs[0], dtype, 1e-6, added, normed)
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
    qkv, log_scale = (
        torch.randn(B, 35, 3, 2, 64).to(dtype),
        nn.Parameter(torch.tensor([0.7, 9.0])),
    )  # the second is clamped
    expected = torch.stack(list(split_heads(qkv.requires_grad_(), log_scale)))
    found = norms.heads(qkv, log_scale)
    dout = torch.randn_like(found)
    close(found, expected, dtype)
    pairs = (torch.autograd.grad(out, (qkv, log_scale), dout) for out in (found, expected))
    for one, other in zip(*pairs, strict=True):
        close(one, other, dtype)


def test_a_network_has_the_same_losses_and_gradients(monkeypatch):
    network = Generator(GeneratorConfig(depth=1, width=64, heads=1, num_classes=3, vocab_size=20, sides=[1, 2, 3]))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    labels, inputs, tokens = torch.tensor([0, 3]), torch.randn(2, 13, 32), torch.randint(20, (2, 14))

    def losses_and_gradients():
        losses = network.eval().token_losses(labels, inputs, tokens)[0]
        return [losses, *torch.autograd.grad(losses.mean(), list(network.parameters()), allow_unused=True)]

    expected = losses_and_gradients()
    for module in ("attention", "mamba", "norms"):
        monkeypatch.setattr(f"mvar.ops.{module}.runs_kernels", lambda *_: True)
    monkeypatch.setattr("mvar.nn.linear.recomputes", lambda _: True)
    torch.testing.assert_close(losses_and_gradients(), expected, rtol=1e-4, atol=1e-6)


def test_kernels_are_checked_before_their_first_use(monkeypatch):
    assert check.first_difference(torch.device("cpu"), torch.bfloat16, gradient=False) is None
    monkeypatch.setattr(check, "SHAPES", check.SHAPES[1:])
    assert check.first_difference(torch.device("cpu"), torch.float32, gradient=True) is None
    monkeypatch.setattr(norms, "heads", lambda qkv, log_scale: torch.zeros(3, len(qkv), qkv.shape[3], qkv.shape[1], 64))
    assert (
        check.first_difference(torch.device("cpu"), torch.float32, gradient=False)
        == "heads differs from PyTorch by 1.0e+00"
    )


def test_kernels_may_be_checked_inside_activation_checkpointing(monkeypatch):
    monkeypatch.setattr(check, "SHAPES", ((3, 16, 64),))
    found = []

    def block(x):
        if not found:
            found.append(check.first_difference(torch.device("cpu"), torch.float32, gradient=True))
        return x.exp()

    x = torch.ones(3, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    assert found == [None]
    assert torch.equal(x.grad, x.detach().exp())


def test_noise_has_the_same_bits():
    seed, index, V, l = 2**63 - 5, (3, 2**64 - 1), 100, 5
    at = torch.randint(0, V, (2, l, 7))
    everywhere = uniform(seed, index, 4, (l, V))
    keys = key_bits(seed, index)
    assert torch.equal(noise.gumbel_operator(keys, None, 4, l, V, True), everywhere)
    assert torch.equal(noise.gumbel_operator(keys, at, 4, l, V, True), everywhere.gather(-1, at))
    for places in (None, at):
        found, expected = (
            noise.gumbel(seed, index, 4, (l, V), places, keys.device),
            gumbel(seed, index, 4, (l, V), places),
        )
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_kernels_compile_for_real_cards_and_stay_in_registers(tmp_path):
    """Capabilities of A100, H100 and the RTX cards of 2025, whose programs have 99 KB of shared memory at most."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).with_name("compiled.py")
    largest = [f"{card}:bf16:{kernel}" for card in (80, 120) for kernel in ("scan_forward", "scan_backward")]
    command = [sys.executable, "-W", "ignore", str(script), "90:bf16,fp32", *largest]
    found = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 22 + len(largest)
    for name, kernel in found.items():
        assert kernel["shared"] <= 99 * 1024, name
        most = {"scan_backward bf16": 640, "scan_backward fp32": 1024}.get(name.split(maxsplit=1)[1], 64)
        assert kernel["stack"] <= most, f"{name} spills {kernel['stack']} bytes a thread"
