"""Token maps of training images that look the same in every epoch: encoded when they first come up, then remembered.

They are kept in a file, so that a run that is resumed sees the tokens that it saw before, encoded in the same batches:
in another batch a near-tie between two codes may end otherwise. Each row carries a checksum of its tokens together with
the image and the tokenizer that they belong to. What does not fit, be it torn, damaged or of other images, counts as
not yet encoded. So may several ranks use one file. (Where an image comes twice in one optimizer step, at the turn of an
epoch, two ranks may each encode it, in different batches: the one exception to what is said above.)

Shapes: B batch, L tokens of all scales.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from mvar.data.tokens.cache import token_dtype
from mvar.data.tokens.encoded import EncodedImages
from mvar.files import atomic_write

CHECK_BYTES = 16


class RememberedTokens:
    """A `Source` whose rows are the images' numbers, for which `tokens` gives their tokens."""

    def __init__(self, encoded: EncodedImages) -> None:
        """Args:
        encoded: the images, whose views must not vary.
        """
        self._encoded = encoded
        self.labels, self.classes = encoded.labels, encoded.classes
        tokenizer = encoded.tokenizer
        self._tokenizer = f"{tokenizer.fingerprint()} {tokenizer.config.sides}".encode()
        tokens = (token_dtype(tokenizer.config.vocab_size), (tokenizer.config.schedule.length,))
        row = np.dtype([("check", np.uint8, (CHECK_BYTES,)), ("tokens", *tokens)])
        self._rows = np.zeros(len(encoded), row)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, i: int) -> str:
        """The image's file."""
        return self._encoded.name(i)

    def batch(self, indices_B: Sequence[int] | Tensor, epochs_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The images' numbers and their labels, both int64 (B,); what is not yet encoded waits for `tokens`."""
        indices_B = torch.as_tensor(indices_B)
        return indices_B, self.labels[indices_B]

    def tokens(self, indices_B: Tensor) -> Tensor:
        """Tokens int64 (B, L) of images by their numbers; those that have none yet are read and encoded, once each."""
        numbers_B = indices_B.numpy()
        rows_B = self._rows[numbers_B]  # a copy, whatever other ranks write
        rows = zip(numbers_B.tolist(), rows_B, strict=True)
        if new := list(dict.fromkeys(i for i, row in rows if row["check"].tobytes() != self._check(i, row["tokens"]))):
            encoded, _ = self._encoded.batch(new)
            for i, tokens_L in zip(new, encoded.cpu().numpy().astype(rows_B["tokens"].dtype), strict=True):
                rows_B["tokens"][numbers_B == i] = tokens_L
                self._rows[i] = np.frombuffer(self._check(i, tokens_L), np.uint8), tokens_L
        return torch.from_numpy(rows_B["tokens"].astype(np.int64))

    def known(self) -> int:
        """How many images have tokens that are whole and theirs."""
        return sum(row["check"].tobytes() == self._check(i, row["tokens"]) for i, row in enumerate(self._rows))

    def make_file(self, path: Path, keep: bool) -> None:
        """Make the file, unless there is one of these images' size and it is to be kept.

        All of its bytes are written, so that the disk cannot be full later on.
        """
        rows = np.zeros(len(self), self._rows.dtype)
        if not keep or not _has_form(path, rows):
            atomic_write(path, lambda partial: np.save(partial, rows))

    def use_file(self, path: Path) -> None:
        """Remember in this file, which `make_file` has made."""
        self._rows = open_memmap(path, mode="r+")

    def _check(self, i: int, tokens_L: np.ndarray) -> bytes:
        """What tells that these tokens are whole and belong to an image and the tokenizer."""
        parts = (self._tokenizer, self._encoded.images.marks[i].encode(), tokens_L.tobytes())
        return blake2b(b"\n".join(parts), digest_size=CHECK_BYTES).digest()


def _has_form(path: Path, rows: np.ndarray) -> bool:
    """Whether a file holds an array like this one."""
    try:
        found = open_memmap(path, mode="r")
    except (OSError, ValueError):
        return False
    return found.dtype == rows.dtype and found.shape == rows.shape
