"""How a generator's weights are initialised: one table.

Shapes: C width, n branches of a block.
Source: VAR (Tian et al. 2024); Mamba-2 (Dao & Gu 2024) for its A, dt, D and convolution. On purpose unlike the official
M-VAR: every branch gets the gate factor, Mamba's out_proj is scaled by depth, and Mamba-2 keeps its own initialisation.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mvar.generator.network import Generator

BIASED = ("word_embed", "shared_adaln", "adaln", "attention.proj", "mlp.fc1", "mlp.fc2", "head_adaln", "head")
Initializer = Callable[[tuple[int, ...], torch.Generator], Tensor]


def gate_factor(depth: int) -> float:
    """How much smaller gates start than the other AdaLN weights: smaller in deeper networks."""
    return next(factor for limit, factor in ((24, 1e-3), (30, 1e-4), (36, 1e-5), (math.inf, 5e-6)) if depth < limit)


def initialise(generator: Generator, seed: int, fill: Callable[[Tensor, Tensor], object] = Tensor.copy_) -> None:
    """Fill every parameter; the same seed gives the same weights whatever the device or dtype.

    `fill` writes values to a parameter; it is `copy_` unless the parameter is sharded over ranks.
    """
    rng = torch.Generator().manual_seed(seed)
    table = _table(generator)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            kind = ".".join(name.split(".")[2:]) if name.startswith("blocks.") else name
            fill(parameter, table[kind](tuple(parameter.shape), rng))


def _table(generator: Generator) -> dict[str, Initializer]:
    C, depth = generator.config.width, generator.config.depth
    normal, zero, one = _normal(math.sqrt(1 / (3 * C))), _constant(0), _constant(1)
    output = _normal(math.sqrt(1 / (3 * C)) / math.sqrt(2 * depth))
    gates = gate_factor(depth)
    return {
        **dict.fromkeys(("class_embed.weight", "start_pos", "pos_embed", "level_embed.weight"), normal),
        **dict.fromkeys((f"{name}.bias" for name in BIASED), zero),
        "word_embed.weight": normal,
        "shared_adaln.weight": _adaln(normal, gates),
        "adaln.weight": _adaln(normal, gates),
        "adaln_offset": _adaln(_normal(math.sqrt(1 / C)), gates),
        "attention.qkv.weight": normal,
        "attention.q_bias": zero,
        "attention.v_bias": zero,
        "attention.log_scale": _constant(math.log(4)),
        "attention.proj.weight": output,
        "mamba.in_proj.weight": normal,
        "mamba.conv_weight": _uniform(-0.5, 0.5),  # +- 1 / sqrt(width 4)
        "mamba.conv_bias": _uniform(-0.5, 0.5),
        "mamba.dt_bias": _dt_bias,
        "mamba.A_log": lambda shape, rng: _uniform(1, 16)(shape, rng).log(),
        "mamba.D": one,
        "mamba.norm_weight": one,
        "mamba.out_proj.weight": output,
        "mlp.fc1.weight": normal,
        "mlp.fc2.weight": output,
        "head_adaln.weight": lambda shape, rng: 0.5 * normal(shape, rng),
        "head.weight": lambda shape, rng: 0.02 * normal(shape, rng),
    }


def _constant(value: float) -> Initializer:
    return lambda shape, rng: torch.full(shape, float(value))


def _normal(std: float) -> Initializer:
    return lambda shape, rng: std * torch.randn(shape, generator=rng)


def _uniform(low: float, high: float) -> Initializer:
    return lambda shape, rng: low + (high - low) * torch.rand(shape, generator=rng)


def _adaln(initializer: Initializer, gates: float) -> Initializer:
    """Rows (or vectors) of 3n AdaLN vectors: the gates times their factor, scales and shifts times one half."""

    def scaled(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        values_3x = initializer(shape, rng).view(3, -1)
        values_3x[0] *= gates
        values_3x[1:] *= 0.5
        return values_3x.view(shape)

    return scaled


def _dt_bias(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """softplus(dt_bias) is log-uniform in [0.001, 0.1]."""
    dt = _uniform(math.log(1e-3), math.log(1e-1))(shape, rng).exp()
    return dt + torch.log(-torch.expm1(-dt))
