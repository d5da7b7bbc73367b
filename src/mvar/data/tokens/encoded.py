"""Token maps that are encoded on demand, each time or once.

Shapes: B batch, L tokens of all scales, H W pixels.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from mvar.data.source import PixelSource
from mvar.data.tokens.cache import TokenSource, npy, token_dtype
from mvar.files import atomic_write
from mvar.progress import track
from mvar.tokenizer.network import Tokenizer

ENCODED_AT_ONCE = 64  # images
CHECK_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """Token maps of images, encoded whenever they are asked for.

    Attributes:
        images: their pixels.
        tokenizer: in eval mode.
        dtype: of the encoder's matrix products; bfloat16 changes some of the tokens.
    """

    images: PixelSource
    tokenizer: Tokenizer
    dtype: Literal["float32", "bfloat16"] = "float32"

    def tokens(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> Tensor:
        """Tokens int64 (B, L) on the tokenizer's device; without epochs those of the centre crops."""
        pixels_B3HW, _ = self.images.batch(indices_B, epochs_B)
        device = self.tokenizer.quantizer.codebook.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == "bfloat16"):
            maps = self.tokenizer.encode(pixels_B3HW.to(device) / 255)
        return torch.cat(maps, dim=1)

    def in_memory(self, label: str) -> TokenSource:
        """Encode the centre crops of all images now; `label` names the progress bar."""
        images = self.images
        batches = torch.arange(len(images)).split(ENCODED_AT_ONCE)
        tokens = [self.tokens(indices_B).int().cpu() for indices_B in track(batches, len(batches), label)]
        names, shard = [str(path) for path in images.paths], torch.cat(tokens).numpy()[:, None]
        return TokenSource(shards=[shard], labels=images.labels, classes=images.classes, names=names)


class RememberedTokens:
    """A `Source` of images that look the same in every epoch; its rows are image indices for `tokens`.

    Tokens are encoded when first needed and kept in a file, so that a resumed run sees the same ones: in another batch,
    a near-tie between two codes may end otherwise. Each row has a checksum of its tokens, image and tokenizer; a row
    that does not fit, torn, damaged or of another image, counts as not yet encoded, so that several ranks can share one
    file. (An image that comes twice in one optimizer step, at the turn of an epoch, may be encoded by two ranks in
    different batches.)
    """

    def __init__(self, encoded: EncodedImages) -> None:
        """Remember tokens of these images, whose views must not vary."""
        self._encoded = encoded
        self.labels, self.name = encoded.images.labels, encoded.images.name
        tokenizer = encoded.tokenizer
        self._tokenizer = f"{tokenizer.fingerprint()} {tokenizer.config.sides}".encode()
        tokens = (token_dtype(tokenizer.config.vocab_size), (tokenizer.config.schedule.length,))
        row = np.dtype([("check", np.uint8, (CHECK_BYTES,)), ("tokens", *tokens)])
        self._rows = np.zeros(len(encoded.images), row)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Image indices and labels, both int64 (B,)."""
        indices_B = torch.as_tensor(indices_B)
        return indices_B, self.labels[indices_B]

    def tokens(self, indices_B: Tensor) -> Tensor:
        """Tokens int64 (B, L) of images by index; those without are read and encoded, once each."""
        numbers_B = indices_B.numpy()
        rows_B = self._rows[numbers_B]  # a copy, whatever other ranks write
        rows = zip(numbers_B.tolist(), rows_B, strict=True)
        if new := list(dict.fromkeys(i for i, row in rows if not self._fits(i, row))):
            encoded = self._encoded.tokens(new).cpu().numpy()
            for i, tokens_L in zip(new, encoded.astype(rows_B["tokens"].dtype), strict=True):
                rows_B["tokens"][numbers_B == i] = tokens_L
                self._rows[i] = np.frombuffer(self._check(i, tokens_L), np.uint8), tokens_L
        return torch.from_numpy(rows_B["tokens"].astype(np.int64))

    def known(self) -> int:
        """The number of images with valid tokens."""
        return sum(self._fits(i, row) for i, row in enumerate(self._rows))

    def make_file(self, path: Path, keep: bool) -> None:
        """Create the file, unless `keep` and there is one of the right size; in full, so that no disk fills later."""
        rows = np.zeros(len(self), self._rows.dtype)
        with suppress(OSError, ValueError):  # none yet, or damaged
            found = open_memmap(path, mode="r")
            if keep and (found.dtype, found.shape) == (rows.dtype, rows.shape):
                return
        atomic_write(path, lambda partial: partial.write_bytes(npy(rows)))

    def use_file(self, path: Path) -> None:
        """Remember in a file that `make_file` has created."""
        self._rows = open_memmap(path, mode="r+")

    def _fits(self, i: int, row: Any) -> bool:
        return bool(row["check"].tobytes() == self._check(i, row["tokens"]))

    def _check(self, i: int, tokens_L: np.ndarray) -> bytes:
        parts = (self._tokenizer, self._encoded.images.marks[i].encode(), tokens_L.tobytes())
        return blake2b(b"\n".join(parts), digest_size=CHECK_BYTES).digest()
