import shutil
import subprocess

import pytest
import torch
from torch.nn import functional as F

from mvar.ops import native
from mvar.ops.attention import LARGEST_LOG_SCALE, split_heads
from mvar.ops.linear import linear

needs_compiler = pytest.mark.skipif(native.load().library is None, reason=native.load().reason)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """`load` as in the first process of a new user, and as usual afterwards; the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.load.cache_clear()
    yield tmp_path / "cache" / "mvar" / "native"
    native.load.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_without_a_compiler_it_says_so(monkeypatch):
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert native.load() == (None, "there is no gcc to compile its passes")
    with pytest.raises(RuntimeError, match="no compiled passes: there is no gcc"):
        native.gelu_(torch.zeros(16))


@needs_compiler
@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    "error", [subprocess.CalledProcessError(1, "gcc", stderr="no such flag\nat all"), OSError("no such flag")]
)
def test_a_compiler_that_fails_is_no_compiler(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(native.subprocess, "run", fail)
    assert native.load() == (None, "its passes cannot be compiled: no such flag")


@pytest.fixture
def compiled(monkeypatch):
    """The names of the files that were compiled."""
    run, names = subprocess.run, []

    def watched(command, **options):
        names.append(command[command.index("-o") + 1])
        return run(command, **options)

    monkeypatch.setattr(native.subprocess, "run", watched)
    return names


@needs_compiler
def test_they_are_compiled_once_for_all_processes(fresh, compiled, monkeypatch):
    def again():
        native.load.cache_clear()
        assert native.load().library is not None
        return len(compiled)

    assert [again(), again()] == [1, 1]
    assert fresh.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-g0"))
    assert again() == 2, "other flags, other code"
    fresh.chmod(0o750)
    assert again() == 3, "what others may read or write is not loaded"
    shutil.rmtree(fresh.parent.parent)
    fresh.parent.parent.write_text("not a folder")
    assert again() == 4, "without a cache they are compiled in each process"


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "length", "heads"), [(1, 1, 1), (2, 7, 3)])
def test_heads_are_normalised_queries_and_keys_and_values(dtype, batch, length, heads, monkeypatch):
    qkv = torch.randn(batch, length, 3, heads, 64).to(dtype)
    qkv[:, 0, 0, 0] = 0  # a query of no length
    log_scale = torch.linspace(-1, 2 * LARGEST_LOG_SCALE, heads)
    found = []
    for mode in ("native", "torch"):
        monkeypatch.setenv("MVAR_OPS", mode)
        with torch.no_grad():
            found.append(split_heads(qkv, log_scale))
    torch.testing.assert_close(*map(list, found), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gelu_is_that_of_float64_where_it_is_large_small_and_not_finite(dtype):
    odd = [0.0, -0.0, 50.0, -50.0, 1e5, -1e5, 1e-30, -1e-30, torch.inf, torch.nan, 3.0, -3.0, 88.0, -88.0, 9.0, -4.0]
    x = torch.cat((torch.linspace(-8, 8, 4000), torch.tensor(odd))).to(dtype).view(-1, 16)
    expected = F.gelu(x.double(), approximate="tanh").to(dtype)
    with torch.no_grad():
        actual = linear(x, torch.eye(16, dtype=dtype), gelu=True)
    assert native.gelu_(x) is x, "in place"
    torch.testing.assert_close(x, expected, rtol=2e-6 if dtype == torch.float32 else 8e-3, atol=2e-7, equal_nan=True)
    rows = expected.isfinite().all(1)  # a product spreads what is not finite over its row
    torch.testing.assert_close(actual[rows], x[rows], rtol=0, atol=0)


def add(x, gate, y):
    return native.adaln(x, y.dtype, 0.0, add=(gate, y))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: add(t(1, 2, 16), t(2, 16), t(1, 2, 16)), "gate: .* must be .1, 16. of torch.float32"),
        (lambda t: add(t(1, 2, 16).double(), t(1, 16), t(1, 2, 16)), "x: .*float64 on cpu, must be"),
        (lambda t: native.heads(t(1, 2, 3, 1, 64), t(2)), "temperature: .* must be .1,."),
        (lambda t: native.gelu_(t(16, 16, 2)[..., 0]), "gelu: the tensor must be contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros)
