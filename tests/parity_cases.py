"""The parity cases: outputs of the official code, and the weights that a rule rebuilds; see tests/parity/README.md."""

import json
import math
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

PARITY = Path(__file__).parent / "parity"
PARITY_CASES = ("mvar", "mvar_no_qk_norm", "mvar_ten_scales", "var", "var_shared_adaln")


@dataclass(frozen=True)
class ParityCase:
    """One tiny official model: its settings, official state dicts with buffers, and what the official code gave."""

    name: str
    settings: dict[str, Any]
    tokenizer: dict[str, Tensor]
    generator: dict[str, Tensor]
    outputs: dict[str, Tensor]


@cache
def load_case(name: str) -> ParityCase:
    """A case by name; its tensors are shared, so do not write to them."""
    settings = json.loads((PARITY / f"{name}.json").read_text(encoding="utf-8"))
    tensors = load_file(PARITY / f"{name}.safetensors")

    def state(network: str, key: str) -> dict[str, Tensor]:
        prefix = f"buffer.{network}."
        weights = {n: _weight(f"{key}/{n}", n, shape) for n, shape in settings.pop(f"{network}_parameters").items()}
        return weights | {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    tokenizer, generator = state("tokenizer", "tokenizer"), state("generator", name)
    outputs = {n: t for n, t in tensors.items() if not n.startswith("buffer.")}
    return ParityCase(name, settings, tokenizer, generator, outputs)


def _weight(key: str, name: str, shape: list[int]) -> Tensor:
    """The tensor of that official name and shape: SplitMix64 on (key, i), scaled by what the name says."""
    i = np.arange(math.prod(shape), dtype=np.uint64)
    # Arrays of uint64 wrap, as the rule wants.
    z = np.uint64(zlib.crc32(key.encode()) << 32) + i + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    x = ((2 * ((z >> np.uint64(40)) / 2**24) - 1) * math.sqrt(3)).astype(np.float32)
    return _scaled(name, torch.from_numpy(x).reshape(shape))


def _scaled(name: str, x: Tensor) -> Tensor:
    if name.endswith("A_log"):
        return 1 + x / math.sqrt(3)
    if name.endswith("dt_bias"):
        return -3 + x
    if name.endswith("scale_mul_1H11"):
        return math.log(4) + 0.2 * x
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * x
    if name == "quantize.embedding.weight":
        return x
    if "emb" in name or "pos" in name or x.dim() == 1:
        return 0.1 * x
    return 0.7 / math.sqrt(math.prod(x.shape[1:])) * x
