"""Where a run and its model come from: the environment of each start, and the provenance in a bundle."""

import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from mvar import __version__
from mvar.data.splits import is_stream
from mvar.machine import processor
from mvar.training.config import RunConfig
from mvar.training.parallel import Ranks


def provenance(config: RunConfig, steps: int) -> dict[str, Any]:
    """How a model was trained for this number of steps, for its bundle."""
    return {
        "trained_with": f"mvar {__version__}, torch {torch.__version__}",
        # The address of a stream may hold a password.
        "data": "a stream of shards" if is_stream(config.data) else Path(config.data).resolve().name,
        "steps": steps,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def environment(ranks: Ranks, step: int) -> dict[str, Any]:
    """Command, versions and machine of one start of a run, which has done this number of steps."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    revision = None
    with suppress(OSError, subprocess.SubprocessError):  # no git, a slow disk, no repository
        revision = subprocess.run(git, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": step,
        "command": sys.argv,
        "mvar": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "git": revision,
        "system": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else str(ranks.device),
        "ranks": ranks.size,
        "parallel": ranks.kind,
    }
