"""Token maps that are encoded on demand.

Shapes: B batch, L tokens of all scales, H W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mvar.data.source import PixelSource
from mvar.data.tokens.cache import TokenSource
from mvar.progress import track
from mvar.tokenizer.network import Tokenizer

ENCODED_AT_ONCE = 64  # images


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """Token maps of images (a `Source`).

    Attributes:
        images: their pixels.
        tokenizer: in eval mode.
        dtype: of the encoder's matrix products; bfloat16 changes some of the tokens.
    """

    images: PixelSource
    tokenizer: Tokenizer
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 (n,)."""
        return self.images.labels

    @property
    def classes(self) -> list[str]:
        """Class names; empty for a set without classes."""
        return self.images.classes

    def __len__(self) -> int:
        return len(self.images)

    def name(self, i: int) -> str:
        """The image's file."""
        return self.images.name(i)

    def batch(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Tokens int64 (B, L) on the tokenizer's device, and labels int64 (B,); without epochs of the centre crops."""
        pixels_B3HW, labels_B = self.images.batch(indices_B, epochs_B)
        device = self.tokenizer.quantizer.codebook.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            maps = self.tokenizer.encode(pixels_B3HW.to(device) / 255)
        return torch.cat(maps, dim=1), labels_B

    def in_memory(self, label: str) -> TokenSource:
        """Encode the centre crops of all images now; `label` names the progress bar."""
        batches = torch.arange(len(self)).split(ENCODED_AT_ONCE)
        tokens = [self.batch(indices_B)[0].int().cpu() for indices_B in track(batches, len(batches), label)]
        names = [self.name(i) for i in range(len(self))]
        shard = torch.cat(tokens).numpy()[:, None]
        return TokenSource(shards=[shard], labels=self.labels, classes=self.classes, names=names)
