"""Files of tensors: reading .pth and .safetensors, writing .safetensors. Pickled code never runs."""

import argparse
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def read_tensors(path: Path) -> Any:
    """The file's content on the CPU: mostly a state dict, but any container of tensors and plain values.

    Raises:
        ValueError: the file is missing, damaged, or holds pickled code; one line that names it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # trainers' settings; runs nothing
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle raises whatever its bytes spell: KeyError, OSError, EOFError, ...
        if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
            reason = f"holds {code[1]}, and pickled code is never run; save its state dict alone, by torch.save"
        else:
            first = re.split(r"\. |\n", f"{type(error).__name__}: {error}")[0]
            reason = f"is damaged, cut short, or no file of tensors ({first})"
        raise ValueError(f"{path.name} {reason}") from None


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file; raises OSError where the disk is full."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(f"{path.parent}: cannot be written ({error})") from error
