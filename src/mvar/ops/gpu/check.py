"""What happens before the kernels are first used on a device: each is compared with PyTorch's operations."""

import torch
from torch import Tensor

from mvar.ops import attention, norms
from mvar.ops.dispatch import torch_only
from mvar.ops.gpu import norms as fast
from mvar.ops.gpu.mamba import between_projections
from mvar.ops.mamba import EPS, MambaState, MambaWeights, mamba

WORST = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # relative differences: TF32 in three parts, and bfloat16


@torch.no_grad()
def first_difference(device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with the kernels on this device, in a few words; None where all agree with PyTorch.

    Raises whatever Triton raises where a kernel does not compile.
    """
    rng = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device)

    B, L, h, P, N, C = 2, 40, 2, 64, 64, 128
    D = h * P + 2 * N
    weights = MambaWeights(random(D, 4), random(D), random(h), random(h), random(h), random(h * P))
    state = MambaState(random(B, 3, D), random(B, h, P, N))
    projected = random(B, L, h * P + D + h).to(dtype)
    x, y, vectors = random(B, L, C), random(B, L, C).to(dtype), random(3, B, C)
    qkv, log_scale = random(B, L, 3, h, P).to(dtype), random(h)
    found = {
        "mamba": between_projections(projected, weights, *state, EPS),
        "adaln": fast.adaln(x, dtype, norms.ADALN_EPS, add=(vectors[0], y), norm=(vectors[1], vectors[2])),
        "heads": fast.heads(qkv, log_scale).unbind(),
    }
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch_only():
            out, after = mamba(projected, weights, state)
            expected = {
                "mamba": (out, *after),
                "adaln": norms.gated_sum_adaln(x, vectors[0], y, vectors[1], vectors[2]),
                "heads": attention.split_heads(qkv, log_scale),
            }
    finally:
        torch.set_float32_matmul_precision(precision)
    for name, ours in found.items():
        for one, other in zip(ours, expected[name], strict=True):
            apart = float((one.double() - other.double()).norm() / other.double().norm())
            if not apart <= WORST[dtype]:  # NaN too
                return f"{name} differs from PyTorch by {apart:.1e}"
    return None
