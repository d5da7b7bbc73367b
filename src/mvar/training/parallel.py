"""Training with several ranks, the processes that torchrun starts, each with its own GPU where there are some.

DDP keeps a copy of the model in each process; FSDP2 shards every weight, gradient and moment over them.
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
    """This process among the others; with `kind` None it is alone and communicates with nobody."""

    rank: int = 0
    size: int = 1
    kind: Kind | None = None
    device: torch.device
    patience: timedelta = timedelta(minutes=10)  # without an answer from another rank the run fails

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    def batches(self, n: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This rank's part of n items, in the same number of batches on every rank.

        Yields indices int64 (B,) and which of them are real: the last batches repeat the last item, so that the ranks
        stay in step.
        """
        size = min(size, -(-n // self.size))
        for start in range(self.rank * size, self.rank * size + n, self.size * size):
            indices_B = torch.arange(start, start + size)
            yield indices_B.clamp(max=n - 1), indices_B < n

    def total(self, value: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """The sum of a tensor over ranks, or another reduction."""
        if self.kind is None:
            return value
        value = value.clone()
        dist.all_reduce(value, op=op)
        return value

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over ranks."""
        return value if self.kind is None else self.total(value) / self.size

    def all_rows(self, rows: Tensor) -> Tensor:
        """The rows of all ranks, concatenated in rank order; each has the same number."""
        if self.kind is None:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite a tensor with the main rank's."""
        if self.kind is not None:
            dist.broadcast(tensor, src=0)

    def gather(self, value: Any) -> list[Any]:
        """A small object of each rank, in rank order, on every rank."""
        values: list[Any] = [value] * self.size
        if self.kind is not None:
            dist.all_gather_object(values, value)
        return values

    def gather_on_main(self, value: Any) -> list[Any] | None:
        """An object of each rank, in rank order, on the main rank; None on the others."""
        if self.kind is None:
            return [value]
        values: list[Any] | None = [None] * self.size if self.main else None
        dist.gather_object(value, values, dst=0)
        return values

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Call `work` on the main rank; all ranks return its result, or raise its ValueError or OSError."""
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
def process_group(kind: Kind | None, device: str | None, minutes: float) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun this process is alone.

    The run fails after `minutes` without an answer from another rank. Raises ValueError for a kind of parallelism
    without torchrun, or a device that is not there.
    """
    if "WORLD_SIZE" not in os.environ:
        if kind is not None:
            raise ValueError(
                f"parallel = {kind!r}: several processes are started by torchrun; "
                "run  torchrun --nproc-per-node N -m mvar train ...  or leave parallel out"
            )
        yield Ranks(device=find_device(device))
        return
    found, patience = find_device(device), timedelta(minutes=minutes)
    if found.type == "cuda":
        found = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(found)
    own_group = not dist.is_initialized()  # a program that trains twice makes the process group itself
    if own_group:
        dist.init_process_group("cpu:gloo,cuda:nccl" if found.type == "cuda" else "gloo", timeout=patience)
    try:
        size = dist.get_world_size()
        yield Ranks(rank=dist.get_rank(), size=size, kind=kind or "ddp", device=found, patience=patience)
    finally:
        if own_group:
            dist.destroy_process_group()


def is_silence(error: RuntimeError) -> bool:
    """Whether communication failed because another rank is gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


# --- spreading a model ---


def replicated(module: nn.Module, ranks: Ranks) -> nn.Module:
    """The module to call in training: wrapped in DDP where there are several ranks."""
    if ranks.kind is None or not any(p.requires_grad for p in module.parameters()):
        return module
    return DistributedDataParallel(module, gradient_as_bucket_view=True)


def shard(root: nn.Module, generator: Generator, dtype: torch.dtype | None) -> None:
    """Shard a generator's weights over all ranks by FSDP2, block by block; `root` is the module that training calls.

    `dtype` is that of the blocks' gathered matrices and so of their products; gradients are reduced in float32.
    """
    # Blocks return views, which nothing here modifies in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in generator.each_block():
        # The modulation of all blocks is computed before the first block runs, so it is gathered by itself.
        if not generator.config.shared_adaln:
            fully_shard(block.adaln, mp_policy=policy)
        rest = (m for m in block.modules() if not isinstance(m, FSDPModule))
        fully_shard([m for m in rest if isinstance(m, Linear)], mp_policy=policy)
        fully_shard(block)  # vectors: Mamba's decay and time step, biases; float32 as without FSDP
        if generator.config.shared_adaln:
            register_fsdp_forward_method(block, "modulation")
    fully_shard(root)  # embeddings and head, in float32 as without FSDP


def accumulating(modules: list[nn.Module], last: bool) -> AbstractContextManager[Any]:
    """A context for one micro-batch: DDP exchanges gradients after the last one only.

    FSDP does so after each, as unsharded gradients would take the memory that it is there to save.
    """
    stack = ExitStack()
    for module in modules:
        if isinstance(module, DistributedDataParallel) and not last:
            stack.enter_context(module.no_sync())
    return stack


def full(tensor: Tensor) -> Tensor:
    """All of a sharded tensor (every rank must call this); others are returned as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(tensor: Tensor, values: Tensor) -> None:
    """Copy values, the same on each rank, into a tensor or into this rank's shard of it."""
    if isinstance(tensor, DTensor):
        values = distribute_tensor(values.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(values)


def full_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with all of every tensor, on the CPU."""
    return {name: full(value.detach()).cpu() for name, value in state.items()}
