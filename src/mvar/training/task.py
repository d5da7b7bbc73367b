"""What the loop trains: the part that the tokenizer's and the generator's task share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvar import __version__
from mvar.checkpoint.bundle import Bundle, write_bundle
from mvar.data.loader import Slices
from mvar.data.shards.stream import Stream
from mvar.data.source import PixelSource
from mvar.data.splits import is_stream, open_loader, open_splits
from mvar.data.tokens.cache import TokenSource
from mvar.data.tokens.encoded import RememberedTokens
from mvar.machine import check_memory
from mvar.training.config import RunConfig
from mvar.training.course import Course
from mvar.training.optim import WeightAverage, autocast
from mvar.training.parallel import Ranks

VIEWED_AT_ONCE = 64  # images of a pass without gradients
STATE_BYTES = 16  # per parameter in float32: weight, gradient and Adam's two moments
WEIGHT_BYTES = 4

Metrics = Mapping[str, float | list[float]]
ValidationSet = PixelSource | TokenSource
TrainingSet = ValidationSet | Stream


class Task(ABC):
    """A model with its data, losses and optimizer. The loop owns schedules and files."""

    networks: dict[str, nn.Module]  # "model" first; each is clipped by its own gradient norm
    called: list[nn.Module]  # the modules that a step calls: those networks or their wrappers for several ranks
    optimizer: torch.optim.Optimizer  # each parameter group says by "decay" whether weight decay applies
    average: WeightAverage  # of the model's weights; the loop updates it

    def __init__(
        self, config: RunConfig, ranks: Ranks, train: TrainingSet | RememberedTokens, val: ValidationSet, course: Course
    ) -> None:
        self.config, self.ranks, self.device = config, ranks, ranks.device
        self.course, self.val_images = course, val
        self.autocast = autocast(config.dtype, self.device)
        slices = Slices(config.batch_size, ranks.rank, ranks.size, config.accumulate)
        self.loader = open_loader(train, slices, config.seed, config.workers)

    @abstractmethod
    def phases(self) -> list[float]:
        """The fractions of the run at which steps start to cost more, 0 first."""

    @abstractmethod
    def loss(self, step: int, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of one micro-batch of this rank, and scalars to log."""

    def after_update(self, step: int) -> None:  # noqa: B027  # few tasks need it
        """What follows the optimizer's update, such as the revival of codes."""

    @abstractmethod
    def validate(self) -> Metrics:
        """Losses and statistics on the validation images, "val_loss" among them; the same on every rank."""

    @abstractmethod
    def preview(self, path: Path) -> None:
        """Write a sheet of images; every rank calls it."""

    @abstractmethod
    def bundle(self, steps: int) -> Bundle | None:
        """The model after `steps` updates; every rank calls it, all but the main one may get None."""

    def save_bundle(self, folder: Path, steps: int) -> None:
        """Write the averaged weights as a bundle; every rank calls it."""
        with self.average.applied():
            bundle = self.bundle(steps)
            if bundle is not None and self.ranks.main:
                write_bundle(folder, bundle)

    def provenance(self, steps: int) -> dict[str, Any]:
        """How the model was trained for this number of steps, for its bundle."""
        data = self.config.data
        return {
            "trained_with": f"mvar {__version__}, torch {torch.__version__}",
            # The address of a stream may hold a password.
            "data": "a stream of shards" if is_stream(data) else Path(data).resolve().name,
            "steps": steps,
            "batch_size": self.config.batch_size,
            "seed": self.config.seed,
        }

    def state(self) -> dict[str, Tensor]:
        """Live tensors to checkpoint besides weights and optimizer, the same on every rank; resuming fills them."""
        return {}


def open_images(config: RunConfig, shape: tuple[int, int]) -> tuple[PixelSource | Stream, PixelSource]:
    """The run's training and validation images, at the model's (height, width)."""
    return open_splits(
        config.data,
        shape,
        val_data=config.val_data,
        resize_factor=config.resize_factor,
        augment=config.augment,
        seed=config.seed,
        on_bad_image=config.on_bad_image,
    )


def check_memory_for(networks: Sequence[nn.Module], config: RunConfig, image_bytes: int, ranks: Ranks) -> None:
    """Raise ValueError if a run cannot fit into memory, by a lower estimate before anything is allocated: weights,
    gradients, moments and average of these networks (on torch's meta device, the averaged one first), and
    `image_bytes` of activations per image of a micro-batch.
    """
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    some_frozen = bool(getattr(config, "freeze", ()) or getattr(config, "decoder_only", False))
    state = sum(sizes) * (WEIGHT_BYTES if some_frozen else STATE_BYTES) + (WEIGHT_BYTES * sizes[0] if config.ema else 0)
    if ranks.kind == "fsdp":
        state //= ranks.size
    images = max(config.batch_size // (config.accumulate * ranks.size), 1)
    check_memory(
        state + images * image_bytes,
        f"model, batch_size: {sum(sizes) / 1e6:,.1f} M parameters in training and {images:,} images at once",
        "give a smaller model or batch_size, or a larger accumulate",
        ranks.device,
    )
