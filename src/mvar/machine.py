"""The process and the machine: what measurements ran on, free memory, the way to a device, installed extras."""

import os
import platform
import sys
import warnings
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch


def free_bytes(device: torch.device | str = "cpu") -> int:
    """Free memory of a device, with what torch has reserved there and does not use."""
    device = torch.device(device)
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available


def check_memory(needed: int, what: str, fix: str, device: torch.device | str = "cpu") -> None:
    """Refuse what does not fit into memory, before it is allocated.

    Raises:
        ValueError: one line with `what` takes the `needed` bytes, such as "n = 100: 100 images", and the `fix`.
    """
    free = free_bytes(device)
    if needed > free:
        raise ValueError(f"{what} take about {_amount(needed)}, {_amount(free)} of memory are free; {fix}")


def send(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on this device; to CUDA through pinned memory, which nobody has to wait for."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def _amount(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def has_extra(package: str, extra: str, left_out: str) -> bool:
    """Whether an optional package is installed; if not, warns what is left out and which extra installs it."""
    if find_spec(package) is not None:
        return True
    warnings.warn(f"{left_out}: left out without {package}; pip install 'mvar-torch[{extra}]'", stacklevel=3)
    return False


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """The processor's name, if the system knows it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
