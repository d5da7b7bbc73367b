"""Which program runs the state-space scan: this package's own, or mamba-ssm's kernel on a GPU that has it.

mamba-ssm's kernel was never run here on a GPU; its arguments and layout are tested with a stand-in.

Shapes: B batch, L tokens, h heads, P head width, N state size.
"""

import functools
import importlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mvar.ops.ssd import ssd

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
KERNEL = "mamba_ssm.ops.triton.ssd_combined"
CHUNKS = (16, 256)  # shortest and longest of the kernel's, which are powers of two


class Choice(NamedTuple):
    """A scan, what it is called, and why it was chosen."""

    run: Scan
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def scan(
    x_BLhP: Tensor, dt_BLh: Tensor, A_h: Tensor, key_BLN: Tensor, query_BLN: Tensor, state_BhPN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scan with what `choose` chose for this device; arguments and results as `mvar.ops.ssd.ssd`."""
    return choose(x_BLhP.device.type).run(x_BLhP, dt_BLh, A_h, key_BLN, query_BLN, state_BhPN)


@functools.cache
def choose(device: str) -> Choice:
    """The scan for a kind of device ("cpu", "cuda", ...): mamba-ssm's on CUDA where it imports, else PyTorch's."""
    if device != "cuda":
        return Choice(ssd, "PyTorch", f"mamba-ssm needs CUDA, this is {device}")
    try:
        kernel = importlib.import_module(KERNEL).mamba_chunk_scan_combined
    except Exception as error:  # whatever a package built for another machine may raise
        return Choice(ssd, "PyTorch", f"mamba-ssm does not import: {type(error).__name__}: {error}")
    return Choice(functools.partial(_combined, kernel), "mamba-ssm", "it imports")


def _combined(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    x_BLhP: Tensor,
    dt_BLh: Tensor,
    A_h: Tensor,
    key_BLN: Tensor,
    query_BLN: Tensor,
    state_BhPN: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """mamba-ssm's `mamba_chunk_scan_combined`: keys and queries have a dimension of groups, here one."""
    shortest, longest = CHUNKS
    chunk = min(max(1 << (x_BLhP.shape[1] - 1).bit_length(), shortest), longest)
    y_BLhP, state_BhPN = kernel(
        x_BLhP.contiguous(),
        dt_BLh.contiguous(),
        A_h,
        key_BLN[:, :, None].contiguous(),
        query_BLN[:, :, None].contiguous(),
        chunk_size=chunk,
        initial_states=state_BhPN,
        return_final_states=True,
    )
    return y_BLhP, state_BhPN.to(torch.promote_types(state_BhPN.dtype, torch.float32))
