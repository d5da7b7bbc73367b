import sys
import types

import pytest
import torch

from mvar.nn.mamba2 import Mamba2
from mvar.ops import scan as scans
from mvar.ops.ssd import ssd
from mvar.ops.ssd_reference import ssd_reference


@pytest.fixture
def arguments():
    rng = torch.Generator().manual_seed(0)
    B, L, h, P, N = 2, 21, 3, 4, 5
    x, key, query = (torch.randn(*shape, generator=rng) for shape in ((B, L, h, P), (B, L, N), (B, L, N)))
    dt = torch.rand(B, L, h, generator=rng)
    return x, dt, -torch.rand(h, generator=rng), key, query, torch.randn(B, h, P, N, generator=rng)


@pytest.fixture
def kernel(monkeypatch):
    """A stand-in for mamba-ssm: its signature and layout, the recurrence's results."""
    calls = []

    def mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size, *, initial_states=None, return_final_states=False):
        batch, length, heads, width = x.shape
        assert dt.shape == (batch, length, heads)
        assert A.shape == (heads,)
        assert B.shape == C.shape == (batch, length, 1, B.shape[-1])
        assert chunk_size & (chunk_size - 1) == 0
        assert initial_states is None or initial_states.shape == (batch, heads, width, B.shape[-1])
        assert return_final_states
        assert all(t.stride(-1) == 1 for t in (x, dt, B, C))
        calls.append(chunk_size)
        y, state = ssd_reference(x, dt, A, B[:, :, 0], C[:, :, 0], initial_states)
        return y, state.bfloat16()

    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton", scans.KERNEL):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[scans.KERNEL].mamba_chunk_scan_combined = mamba_chunk_scan_combined
    forget = scans.choose.cache_clear
    forget()
    yield calls
    forget()


def test_on_a_gpu_the_kernel_gets_what_it_expects(kernel, arguments):
    choice = scans.choose("cuda")
    assert str(choice) == "mamba-ssm (it imports)"
    for state in (arguments[-1], None):
        y, after = choice.run(*arguments[:-1], state)
        expected_y, expected_after = ssd(*arguments[:-1], state)
        torch.testing.assert_close(y, expected_y)
        assert after.dtype == torch.float32
        torch.testing.assert_close(after, expected_after, rtol=1e-2, atol=1e-2)
    choice.run(*(t[:, :1] if t.dim() > 1 else t for t in arguments[:-1]), None)
    assert kernel == [32, 32, 16]


def test_a_layer_runs_with_either(kernel, monkeypatch):
    mamba = Mamba2(32, state_size=8, head_dim=16)
    for parameter in mamba.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 9, 32)
    y, state = mamba(x)
    monkeypatch.setattr(scans, "choose", lambda device, whole=scans.choose: whole("cuda"))
    again, state_again = mamba(x)
    assert kernel == [16]
    torch.testing.assert_close(again, y)
    torch.testing.assert_close(state_again.ssm_BhPN, state.ssm_BhPN, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("error", [ImportError("No module named 'mamba_ssm'"), OSError("libcudart.so.12: not found")])
def test_without_the_kernel_there_is_a_reason(monkeypatch, error):
    def refuse(name):
        raise error

    monkeypatch.setattr(scans.importlib, "import_module", refuse)
    scans.choose.cache_clear()
    choice = scans.choose("cuda")
    assert choice.run is ssd
    assert str(error) in str(choice)
    assert str(scans.choose("cpu")) == "PyTorch (mamba-ssm needs CUDA, this is cpu)"
    scans.choose.cache_clear()
