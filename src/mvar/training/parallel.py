"""Training with several processes: torchrun starts them, this file joins them and spreads a finished model over them.

DDP keeps a copy of the model in each process; FSDP2 keeps a share of every weight, gradient and moment in each.
A process is a rank; on a machine with GPUs each rank has one.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from mvar.checkpoint.placement import find_device
from mvar.generator.network import Generator
from mvar.nn.linear import Linear

Kind = Literal["ddp", "fsdp"]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the others; alone, nothing is sent anywhere."""

    rank: int = 0
    size: int = 1
    kind: Kind | None = None
    device: torch.device
    patience: timedelta = timedelta(minutes=10)  # without an answer from another rank the run fails

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def batches(self, n: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's share of n things, in the same number of batches on every rank.

        Returns:
            Batches of indices int64 (B,), and which of them are real: the last batches repeat the last thing, so that
            the ranks stay together.
        """
        size = min(size, -(-n // self.size))
        for start in range(self.rank * size, self.rank * size + n, self.size * size):
            indices_B = torch.arange(start, start + size)
            yield indices_B.clamp(max=n - 1), indices_B < n

    def total(self, value: Tensor) -> Tensor:
        """The sum over ranks of a tensor."""
        if self.kind is None:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean over ranks of a tensor."""
        return value if self.kind is None else self.total(value) / self.size

    def largest(self, value: Tensor) -> Tensor:
        """The elementwise maximum over ranks of a tensor."""
        if self.kind is None:
            return value
        value = value.clone()
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def joined_rows(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, which have as many each, in their order."""
        if self.kind is None:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def share(self, tensor: Tensor) -> None:
        """Give all ranks the main one's values of a tensor, in place."""
        if self.kind is not None:
            dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """A small object of each rank, in their order, on every rank."""
        if self.kind is None:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather_on_main(self, value: Any) -> list[Any] | None:
        """An object of each rank, in their order, on the main rank; None on the others."""
        if self.kind is None:
            return [value]
        values: list[Any] | None = [None] * self.size if self.main else None
        dist.gather_object(value, values, dst=0)
        return values

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Do this on the main rank and give its result to all; so is a ValueError or OSError that it raises."""
        if self.kind is None:
            return work()
        answer: list[Any] = [None, None]
        if self.main:
            try:
                answer[0] = work()
            except (ValueError, OSError) as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]


@contextmanager
def joined(kind: Kind | None, device: str | None, minutes: float) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun this process is alone.

    Args:
        kind: None takes ddp under torchrun.
        device: as in `find_device`; with CUDA each rank takes the GPU of its local number.
        minutes: after so long without an answer from another rank the run fails.

    Raises:
        ValueError: a kind of parallelism without torchrun, or no such device.
    """
    if "WORLD_SIZE" not in os.environ:
        if kind is not None:
            raise ValueError(
                f"parallel = {kind!r}: several processes are started by torchrun; "
                "run  torchrun --nproc-per-node N -m mvar train ...  or leave parallel out"
            )
        yield Ranks(device=find_device(device))
        return
    found = find_device(device)
    if found.type == "cuda":
        found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(found)
    mine = not dist.is_initialized()  # a program that trains twice joins its ranks itself
    if mine:
        backend = "cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    size, patience = dist.get_world_size(), timedelta(minutes=minutes)
    try:
        yield Ranks(rank=dist.get_rank(), size=size, kind=kind or "ddp", device=found, patience=patience)
    finally:
        if mine:
            dist.destroy_process_group()


def is_silence(error: RuntimeError) -> bool:
    """Whether an exchange failed because another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


# --- spreading a model ---


def replicated(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module to call in training: DDP around it where there are several ranks."""
    if ranks.kind is None or not any(p.requires_grad for p in module.parameters()):
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def shard(root: nn.Module, generator: Generator, dtype: torch.dtype | None) -> None:
    """Spread a generator's weights over all ranks by FSDP2, block by block.

    Args:
        root: the module that training calls, which holds the generator.
        generator: on any device, also meta.
        dtype: of the gathered matrices of the blocks and so of their products; None for float32. Gradients are reduced
            in float32.
    """
    # Blocks give views, on which nothing here works in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    low: Any = {
        "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    }
    for block in generator.each_block():
        # The modulation of all blocks is computed before the first block runs, so it is gathered by itself.
        if not generator.config.shared_adaln:
            fully_shard(block.adaln, **low)
        matrices: list[nn.Module] = [
            m for m in block.modules() if isinstance(m, Linear) and not isinstance(m, FSDPModule)
        ]
        fully_shard(matrices, **low)
        fully_shard(block)  # vectors: Mamba's decay and time step, biases; float32 as without FSDP
        if generator.config.shared_adaln:
            register_fsdp_forward_method(block, "modulation")
    fully_shard(root)  # embeddings and head, in float32 as without FSDP


def accumulating(modules: list[nn.Module], last: bool) -> AbstractContextManager[Any]:
    """A context for the backward pass of one part of a batch.

    DDP exchanges gradients with the `last` part only. FSDP does so with each, as all gradients whole would take the
    memory that it is there to save.
    """
    stack = ExitStack()
    for module in modules:
        if isinstance(module, DistributedDataParallel) and not last:
            stack.enter_context(module.no_sync())
    return stack


# --- whole tensors of spread ones ---


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that is spread over the ranks (every rank must ask); others are given back."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy values, the same on each rank, into a tensor or into this rank's share of it."""
    if isinstance(tensor, DTensor):
        values = distribute_tensor(values.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(values)


def gathered(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with all of every tensor, on the CPU."""
    return {name: whole(value.detach()).cpu() for name, value in state.items()}
