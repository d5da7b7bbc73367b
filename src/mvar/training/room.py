"""Whether a training run fits into memory: a lower estimate, before anything is allocated or read."""

from collections.abc import Sequence

from torch import nn

from mvar.machine import check_memory
from mvar.training.config import GeneratorTraining, RunConfig, TokenizerTraining
from mvar.training.parallel import Ranks

STATE_BYTES = 16  # of a parameter in float32: itself, its gradient and Adam's two moments
WEIGHT_BYTES = 4
# What the backward pass needs at least, in half precision: of a token in a block for each channel of the width, also
# where only the block's input is kept; and of a pixel in one of the decoder's finest blocks for each channel.
TOKEN_BYTES, CHECKPOINTED_BYTES, PIXEL_BYTES = 40, 4, 20


def check_room(networks: Sequence[nn.Module], config: RunConfig, image_bytes: int, ranks: Ranks) -> None:
    """Refuse a run that cannot fit: its weights, their gradients, moments and average, and a part of a batch.

    Args:
        networks: to be trained, the averaged one first; on torch's meta device.
        config: of the run.
        image_bytes: what the backward pass needs of one image.
        ranks: this process among the others.

    Raises:
        ValueError: one line with what is needed and what is free.
    """
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    some_stay = bool(getattr(config, "freeze", ()) or getattr(config, "decoder_only", False))
    state = sum(sizes) * (WEIGHT_BYTES if some_stay else STATE_BYTES) + (WEIGHT_BYTES * sizes[0] if config.ema else 0)
    if ranks.kind == "fsdp":
        state //= ranks.size
    images = max(config.batch_size // (config.accumulate * ranks.size), 1)
    check_memory(
        state + images * image_bytes,
        f"model, batch_size: {sum(sizes) / 1e6:,.1f} M parameters in training and {images:,} images at once",
        "give a smaller model or batch_size, or a larger accumulate",
        ranks.device,
    )


def tokenizer_image_bytes(config: TokenizerTraining) -> int:
    """Of the decoder's finest level, at least."""
    (height, width), model = config.model.image_shape, config.model
    return PIXEL_BYTES * height * width * model.channels * model.multipliers[0] * (model.res_blocks + 1)


def generator_image_bytes(config: GeneratorTraining, length: int) -> int:
    """Of all blocks, at least.

    Args:
        length: L, tokens of an image.
    """
    few = config.activation_checkpointing or config.compile
    return (CHECKPOINTED_BYTES if few else TOKEN_BYTES) * length * config.model.width * config.model.depth
