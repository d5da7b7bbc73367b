"""What MVAR_OPS and a machine choose, and that every choice gives the same numbers."""

import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mvar.generator.config import GeneratorConfig
from mvar.generator.network import Generator
from mvar.ops import native
from mvar.ops.dispatch import describe, find_kernels, runs_kernels, runs_native

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "mixers",
    [
        {},
        {"attention": "global", "mamba": False},
        {"qk_norm": False},
        {"attention": "recent", "order": "parallel", "scan": "bidirectional"},
    ],
)
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
    with torch.no_grad():
        assert not runs_native(torch.zeros(1))
        assert describe(CPU, torch.float32) == "PyTorch (there is no gcc to compile its passes)"
        monkeypatch.setenv("MVAR_OPS", "native")
        with pytest.raises(ValueError, match=r"^MVAR_OPS = 'native': there is no gcc .*; set it to auto or torch$"):
            runs_native(torch.zeros(1))
    monkeypatch.setenv("MVAR_OPS", "torch")
    assert describe(CPU, torch.float32) == "PyTorch (MVAR_OPS = torch)"


def test_kernels_take_tokens_on_cuda_and_show_themselves_on_meta(monkeypatch):
    assert not runs_kernels(torch.zeros(1))
    assert not runs_kernels(torch.zeros(1, device="meta"))
    monkeypatch.setenv("MVAR_OPS", "native")
    assert runs_kernels(torch.zeros(1, device="meta"))
    assert not runs_kernels(torch.zeros(1, device="meta", dtype=torch.float64))


def test_kernels_that_do_not_compile_are_not_used_and_say_why(monkeypatch):
    def refuse(*_):
        raise OSError("libcuda.so.1: not found")

    monkeypatch.setitem(sys.modules, "mvar.ops.gpu.check", types.SimpleNamespace(first_difference=refuse))
    monkeypatch.setattr("mvar.ops.dispatch._verdicts", {})
    with pytest.warns(
        UserWarning, match=r"^the Triton kernels are not used on cuda in torch.float32: OSError: libcuda"
    ):
        assert find_kernels(CUDA, torch.float32, False) == (False, "OSError: libcuda.so.1: not found")
    assert describe(CUDA, torch.float32) == "PyTorch (OSError: libcuda.so.1: not found)"
