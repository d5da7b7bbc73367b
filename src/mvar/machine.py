"""The process and the machine that figures are measured on."""

import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from mvar import __version__


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "mvar": __version__,
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
