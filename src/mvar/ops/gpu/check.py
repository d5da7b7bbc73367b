"""What happens before the kernels are first used on a device: each is compared with PyTorch's operations."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from mvar.ops import attention, norms
from mvar.ops import noise as exact
from mvar.ops.dispatch import NOISE, torch_only
from mvar.ops.gpu import noise
from mvar.ops.gpu import norms as fast
from mvar.ops.gpu.mamba import between_projections
from mvar.ops.mamba import EPS, MambaState, MambaWeights, mamba
from mvar.ops.numerics import without_autocast

# Relative differences, of results and of gradients, which add up more: float32 products run as TF32 in three parts.
WORST = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (3e-2, 1e-1)}
SHAPES = ((40, 64, 128), (7, 16, 192))  # tokens, state size, width: whole chunks and parts, powers of two and others

Function = Callable[..., Sequence[Tensor]]

# Convolutions in TF32, CUDA's default, would be float32 in name only.
_EXACT = partial(torch.backends.cudnn.flags, enabled=torch.backends.cudnn.enabled, allow_tf32=False)


def first_difference(device: torch.device, dtype: torch.dtype, gradient: bool) -> str | None:
    """What is wrong with the kernels on this device, in a few words; None where all agree with PyTorch.

    Args:
        gradient: compare the gradients too.

    Raises whatever Triton raises where a kernel does not compile.
    """
    if dtype == NOISE:
        return _difference_of_noise(device)
    rng, precision = torch.Generator(device).manual_seed(0), torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        for shape in SHAPES if gradient else SHAPES[:1]:  # each takes seconds to compile
            for name, (kernel, operations, inputs) in _cases(*shape, dtype, rng).items():
                for of, problem in _differences(kernel, operations, inputs, gradient):
                    if not problem <= WORST[dtype][of]:  # NaN too
                        what = f"the gradient of {name}" if of else name
                        return f"{what} differs from PyTorch by {problem:.1e}"
    finally:
        torch.backends.cuda.matmul.fp32_precision = precision
    return None


def _difference_of_noise(device: torch.device) -> str | None:
    seed, index, shape = 3, (2**64 - 1, 5), (2, 100)
    bits = noise.gumbel_operator(exact.key_bits(seed, index).to(device), None, 4, *shape, True).cpu()
    found = noise.gumbel(seed, index, 4, shape, None, device).cpu()
    u = exact.uniform(seed, index, 4, shape)
    if not torch.equal(bits, u):
        return f"{int((bits != u).sum())} of {u.numel()} random numbers have other bits"
    apart = float((found + (-torch.log1p(-u)).log()).abs().max())
    return None if apart < 1e-4 else f"noise differs from PyTorch by {apart:.1e}"


def _cases(
    L: int, N: int, C: int, dtype: torch.dtype, rng: torch.Generator
) -> dict[str, tuple[Function, Function, list[Tensor]]]:
    """By name: the kernel, PyTorch's operations, and what both take."""

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=rng, device=rng.device).to(dtype)

    B, h, P = 2, C // 64, 64
    D = C + 2 * N
    weights = [random(D, 4), random(D), random(h), random(h), random(h), random(C)]
    tail = random(B, 3, D)  # to which the kernels give no gradient

    def flat(out: Tensor, after: MambaState) -> Sequence[Tensor]:
        return out, after.tail_BVD, after.ssm_BhPN

    return {
        "mamba": (
            lambda tokens, state, *weights: between_projections(tokens, weights, tail, state, EPS),
            lambda tokens, state, *weights: flat(*mamba(tokens, MambaWeights(*weights), MambaState(tail, state))),
            [random(B, L, C + D + h, dtype=dtype), random(B, h, P, N), *weights],
        ),
        "adaln": (
            lambda x, y, gate, scale, shift: fast.adaln(x, dtype, norms.ADALN_EPS, (gate, y), (scale, shift)),
            lambda x, y, gate, scale, shift: norms.gated_sum_adaln(x, gate, y, scale, shift),
            [random(B, L, C), random(B, L, C, dtype=dtype), *random(3, B, C)],
        ),
        "heads": (
            lambda qkv, log_scale: fast.heads(qkv, log_scale).unbind(),
            attention.split_heads,
            [random(B, L, 3, h, P, dtype=dtype), random(h)],
        ),
    }


def _same(tensor: Tensor) -> Tensor:
    """In place of what activation checkpointing, within which a kernel may be used first, does with saved tensors."""
    return tensor


def _differences(
    kernel: Function, operations: Function, inputs: list[Tensor], gradient: bool
) -> list[tuple[bool, float]]:
    """Relative differences of each result, and of each input's gradient, which are marked by true."""
    leaves = [t.detach().requires_grad_(gradient) for t in inputs]
    with torch.set_grad_enabled(gradient), without_autocast(leaves[0]), _EXACT(), saved_tensors_hooks(_same, _same):
        found = kernel(*leaves)
        with torch_only():
            expected = operations(*leaves)
        pairs = [(False, pair) for pair in zip(found, expected, strict=True)]
        if gradient:
            slopes = [torch.cos(torch.arange(out.numel(), device=out.device)).view_as(out).to(out) for out in expected]
            ours, theirs = (torch.autograd.grad(outs, leaves, slopes, allow_unused=True) for outs in (found, expected))
            pairs += [(True, pair) for pair in zip(ours, theirs, strict=True) if pair[1] is not None]
    return [
        (of, float((one - other).detach().double().norm() / other.detach().double().norm().clamp(min=1e-12)))
        for of, (one, other) in pairs
    ]
