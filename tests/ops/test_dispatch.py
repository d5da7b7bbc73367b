"""What MVAR_OPS and a machine choose, and that every choice gives the same numbers."""

import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.ops import dispatch, native
from mvar.ops.dispatch import describe, find_mamba_ssm, mamba_ssm, runs_native
from mvar.ops.mamba import scan, ssd_reference
from mvar.ops.ssd import ssd

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("mixers", [{}, {"attention": "global", "mamba": False}, {"qk_norm": False}])
def test_every_mode_gives_the_same_losses_gradients_and_logits(mixers, monkeypatch):
    torch.manual_seed(0)
    network = Generator(
        GeneratorConfig(depth=2, width=64, heads=1, num_classes=3, vocab_size=20, sides=[1, 2, 3], **mixers)
    )
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    labels, inputs, tokens = torch.tensor([0, 3]), torch.randn(2, 13, 32), torch.randint(20, (2, 14))
    results = {}
    for name in ("reference", "torch", "auto"):
        monkeypatch.setenv("MVAR_OPS", name)
        losses = network.eval().token_losses(labels, inputs, tokens)[0]
        gradients = torch.autograd.grad(losses.mean(), list(network.parameters()), allow_unused=True)
        with torch.no_grad():
            logits = network(labels, inputs)
        results[name] = [losses, logits, *(g for g in gradients if g is not None)]
    for name in ("torch", "auto"):
        torch.testing.assert_close(results[name], results["reference"], rtol=1e-3, atol=1e-5)


def test_an_unknown_mode_is_refused_in_one_line(monkeypatch, bundle, refused, tmp_path):
    monkeypatch.setenv("MVAR_OPS", "fast")
    lines = refused("sample", "--model", bundle, "--labels", "cat", "--out", str(tmp_path / "a.png"))
    assert lines == ["mvar: MVAR_OPS = 'fast': must be auto, reference, torch or native"]


@pytest.mark.usefixtures("compiled_passes")
@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated")
def test_native_passes_take_tokens_on_a_cpu_without_a_gradient(monkeypatch):
    assert not runs_native(torch.zeros(1))
    with torch.no_grad():
        assert runs_native(torch.zeros(1))
        assert runs_native(torch.zeros(1, dtype=torch.bfloat16))
        assert not runs_native(torch.zeros(1, dtype=torch.float64))
        assert not runs_native(torch.zeros(1, device="meta"))
        with FakeTensorMode():
            assert not runs_native(torch.zeros(1))
        traced = torch.jit.trace(lambda x: x + int(runs_native(x)), torch.zeros(1), check_trace=False)
        assert traced(torch.zeros(1)) == 0
        for name, runs in (("torch", False), ("reference", False), ("native", True), ("", True)):
            monkeypatch.setenv("MVAR_OPS", name)
            assert runs_native(torch.zeros(1)) == runs


def test_native_alone_is_an_error_where_it_is_not_available(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: native.Passes(None, "there is no gcc to compile its passes"))
    monkeypatch.setattr(dispatch, "find_mamba_ssm", lambda: (None, "mamba-ssm does not import: a test"))
    with torch.no_grad():
        assert not runs_native(torch.zeros(1))
        assert mamba_ssm(CUDA) is None
        assert describe(CPU) == "PyTorch (there is no gcc to compile its passes)"
        assert describe(CUDA) == "PyTorch (mamba-ssm does not import: a test)"
        monkeypatch.setenv("MVAR_OPS", "native")
        with pytest.raises(ValueError, match=r"^MVAR_OPS = 'native': there is no gcc .*; set it to auto or torch$"):
            runs_native(torch.zeros(1))
        with pytest.raises(ValueError, match=r"^MVAR_OPS = 'native': mamba-ssm does not import"):
            mamba_ssm(CUDA)
    monkeypatch.setenv("MVAR_OPS", "torch")
    assert describe(CPU) == "PyTorch (MVAR_OPS = torch)"


def test_on_a_gpu_mamba_ssm_gets_what_it_expects(monkeypatch):
    chunks = []

    def kernel(x, dt, A, B, C, chunk_size, *, initial_states=None, return_final_states=False):
        batch, length, heads, width = x.shape
        assert (dt.shape, A.shape) == ((batch, length, heads), (heads,))
        assert B.shape == C.shape == (batch, length, 1, B.shape[-1])
        assert chunk_size & (chunk_size - 1) == 0
        assert initial_states is None or initial_states.shape == (batch, heads, width, B.shape[-1])
        assert return_final_states
        assert all(t.stride(-1) == 1 for t in (x, dt, B, C))
        chunks.append(chunk_size)
        y, state = ssd_reference(x, dt, A, B[:, :, 0], C[:, :, 0], initial_states)
        return y, state.bfloat16()

    monkeypatch.setattr("mvar.ops.mamba.mamba_ssm", lambda device: kernel)
    rng = torch.Generator().manual_seed(0)
    shapes = ((2, 21, 3, 4), (2, 21, 3), (3,), (2, 21, 5), (2, 21, 5), (2, 3, 4, 5))
    x, dt, A, key, query, state = (torch.rand(shape, generator=rng) for shape in shapes)
    for initial in (state, None):
        arguments = (x, dt, -A, key, query, initial)
        (y, after), (expected_y, expected_after) = scan(*arguments), ssd(*arguments)
        torch.testing.assert_close(y, expected_y)
        assert after.dtype == torch.float32
        torch.testing.assert_close(after, expected_after, rtol=1e-2, atol=1e-2)
    scan(x[:, :1], dt[:, :1], -A, key[:, :1], query[:, :1], None)
    assert chunks == [32, 32, 16]


def test_mamba_ssm_is_imported_or_there_is_a_reason(monkeypatch):
    found = types.SimpleNamespace(mamba_chunk_scan_combined=len)
    monkeypatch.setattr(dispatch.importlib, "import_module", lambda name: found)
    find_mamba_ssm.cache_clear()
    assert (mamba_ssm(CUDA), mamba_ssm(CPU), describe(CUDA)) == (len, None, "mamba-ssm (it imports)")

    def refuse(name):
        raise OSError("libcudart.so.12: not found")

    monkeypatch.setattr(dispatch.importlib, "import_module", refuse)
    find_mamba_ssm.cache_clear()
    assert find_mamba_ssm() == (None, "mamba-ssm does not import: OSError: libcudart.so.12: not found")
    find_mamba_ssm.cache_clear()
