"""GPU memory for training a generator, computed on torch's meta device.

    python -m recipes.memory --page-file docs/cluster.md

Shapes: B images, L tokens of all scales, l those after the first scale, Z latent channels, U random numbers per image.
"""

import math
import weakref
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mvar.generator.config import PRESETS, GeneratorConfig
from mvar.generator.network import Generator
from mvar.studies.page import fill, table
from mvar.training.config import GENERATOR_PRESETS
from mvar.training.generator.loss import GeneratorLoss
from recipes.shared import run_cli

NAMES = ("d16", "d20", "d24", "d30", "d32")
RANKS, IMAGES = 8, 32
FLOAT, HALF = 4, 2  # bytes of float32 and bfloat16


class Memory(NamedTuple):
    """Bytes on one GPU at the peak of a step."""

    weights: int
    gradients: int
    moments: int
    average: int
    working: int  # gathered or cast weights, and gradients being reduced
    activations: int

    @property
    def state(self) -> int:
        """What persists from step to step."""
        return self.weights + self.gradients + self.moments + self.average


def fsdp_memory(config: GeneratorConfig, ranks: int, activations: int) -> Memory:
    """Memory of rank 0, which has the largest shard, where `mvar.training.parallel.shard` has sharded the model."""
    generator = _on_meta(config)
    shard = FLOAT * sum(-(-len(p) // ranks) * math.prod(p.shape[1:]) for p in generator.parameters())
    blocks = [parameters(block) for block in generator.each_block()]
    block, rest = max(blocks), parameters(generator) - sum(blocks)
    # Two gathered blocks, this one and the next; one block's gradients, cast to float32 to be reduced; embeddings and
    # head with their gradients throughout the step.
    working = 2 * HALF * block + (HALF + FLOAT) * block + 2 * FLOAT * rest
    return Memory(shard, shard, 2 * shard, shard, working, activations)


def ddp_memory(config: GeneratorConfig, activations: int) -> Memory:
    """Memory of any rank where each holds a copy of the model."""
    generator = _on_meta(config)
    model = FLOAT * parameters(generator)
    block = max(parameters(block) for block in generator.each_block())
    adaln = sum(p.numel() for name, p in generator.blocks.named_parameters() if ".adaln." in name)
    working = HALF * (block + adaln)  # autocast copies the weights of one block, and of all AdaLN, which runs first
    return Memory(model, model, 2 * model, model, working, activations)


def activation_bytes(config: GeneratorConfig, images: int) -> int:
    """Peak of what a step with activation checkpointing allocates beside weights and their gradients.

    All blocks must have the same shape: two depths then give that of any.
    """
    one, two = (step_bytes(as_gathered(replace(config, depth=depth)), images) for depth in (1, 2))
    return one + (config.depth - 1) * (two - one)


def as_gathered(config: GeneratorConfig, device: str = "meta") -> Generator:
    """A generator whose blocks have weights in bfloat16, as FSDP gathers them."""
    with torch.device(device):
        generator = Generator(config)
    for block in generator.each_block():
        block.bfloat16()
    return generator


def step_bytes(generator: Generator, images: int) -> int:
    """`activation_bytes` of this generator, counted in one pass over all its blocks on its device."""
    for parameter in generator.parameters():
        parameter.register_post_accumulate_grad_hook(_drop_gradient)
    B, config = images, generator.config
    generator.train().activation_checkpointing = True
    with _Live() as live, generator.pos_embed.device:
        labels_B = torch.zeros(B, dtype=torch.long)
        tokens_BL = torch.zeros(B, config.schedule.length, dtype=torch.long)
        inputs_BlZ = torch.zeros(B, config.schedule.length - config.schedule.areas[0], config.latent_channels)
        noise_BU = torch.zeros(B, generator.noise_size)
        GeneratorLoss(generator)(labels_B, inputs_BlZ, tokens_BL, noise_BU)[0].mean().backward()
    return live.peak


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _Live(TorchDispatchMode):
    """Tracks the bytes of storages that operations allocate, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _key(tensor) not in given and _key(tensor) not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _on_meta(config: GeneratorConfig) -> Generator:
    with torch.device("meta"):
        return Generator(config)


def parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def tables() -> str:
    """FSDP and DDP for all presets as Markdown, in GB."""
    sharded, copied, disk = [], [], []
    for name in NAMES:
        config, size = PRESETS[name], parameters(_on_meta(PRESETS[name]))
        activations = activation_bytes(config, IMAGES)
        fsdp, ddp = fsdp_memory(config, RANKS, activations), ddp_memory(config, activations)
        weights = FLOAT * size
        micro_batches = GENERATOR_PRESETS[name]["batch_size"] // (RANKS * IMAGES)
        sharded.append(_row(name, size, fsdp))
        copied.append(_row(name, size, ddp))
        disk.append([f"`{name}`", str(micro_batches), _gb(fsdp.state + weights), _gb(4 * weights), _gb(weights)])
    head = ["GB per GPU", "Parameters", "Weights", "Gradients", "Adam", "Average", "Working", "Activations", "Total"]
    sizes = ["", "`--accumulate` for the preset's batch", "Rank 0 in a preview, FSDP", "A checkpoint", "The bundle"]
    parts = [
        f"FSDP, {RANKS} GPUs, micro-batches of {IMAGES} images of 256 px per GPU, activation checkpointing, bfloat16:",
        table(head, sharded),
        "DDP, the same micro-batches:",
        table(head, copied),
        "What follows from these sizes, in GB:",
        table(sizes, disk),
    ]
    return "\n\n".join(parts)


def _row(name: str, size: int, memory: Memory) -> list[str]:
    return [f"`{name}`", f"{size / 1e6:,.0f} M", *map(_gb, memory), f"**{_gb(sum(memory))}**"]


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


def write(page_file: str) -> None:
    """Fill in the tables of a documentation page."""
    fill(page_file, tables())


if __name__ == "__main__":
    run_cli("python -m recipes.memory", write)
