"""What a generator is trained on: images that the tokenizer encodes, or a token cache; both look the same."""

import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mvar.data.shards.stream import Stream
from mvar.data.source import PixelSource
from mvar.data.tokens.cache import TokenCache, TokenSource, is_cache
from mvar.data.tokens.encoded import EncodedImages, RememberedTokens
from mvar.scales import ScaleSchedule
from mvar.tokenizer.network import Tokenizer
from mvar.training.config import GeneratorTraining
from mvar.training.generator.fine_tuning import load_named
from mvar.training.parallel import Ranks
from mvar.training.task import open_images

TOKENS = "tokens.npy"
MOST_EPOCHS = 10  # of unchanged images, without a warning: with 1,055 icons validation loss was lowest after 7


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """Images or token maps for training and validation, and the tokenizer."""

    name: str | None  # of the folder of images that a cache was made from
    train: PixelSource | Stream | TokenSource  # pixels, to be encoded batch by batch, or token maps
    val: PixelSource | TokenSource
    tokenizer: Tokenizer
    remembered: RememberedTokens | None = None  # in place of `train`, if tokens are the same in every epoch

    @classmethod
    def open(cls, config: GeneratorTraining, ranks: Ranks, tokenizer: Tokenizer) -> "TokenData":
        """Open what `config.data` names; images are not encoded yet.

        Raises ValueError if it cannot be used, if another tokenizer made the cache, or if `val_data` or `augment` is
        given with a cache.
        """
        if not is_cache(config.data):
            train, val = open_images(config, tokenizer.config.image_shape)
            return cls(name=None, train=train, val=val, tokenizer=tokenizer)
        if config.val_data is not None:
            raise ValueError(
                f"val_data = {config.val_data!r}: a token cache has its own validation images; leave val_data out"
            )
        if config.augment:
            raise ValueError(
                f"augment = {', '.join(config.augment)}: a token cache holds its views already; leave augment out, "
                "or make the cache with it by mvar tokenize"
            )
        cache = ranks.on_main(lambda: TokenCache.open(config.data))
        made, fingerprint = cache.settings, tokenizer.fingerprint()
        if made.tokenizer != fingerprint or ScaleSchedule(made.sides) != tokenizer.config.schedule:
            raise ValueError(
                f"tokenizer = {config.tokenizer!r}: did not make the cache {config.data!r}; "
                "give the one that did, or make a cache with this one by mvar tokenize"
            )
        cached_train, cached_val = cache.splits()
        return cls(name=made.data, train=cached_train, val=cached_val, tokenizer=tokenizer)

    def ready(self, val_images: int) -> "TokenData":
        """The same with at most this many validation images, encoded now, and training images ready to be read."""
        val, remembered = self.val.at_most(val_images), None
        if isinstance(self.train, PixelSource) and not self.train.views.vary:
            remembered = RememberedTokens(EncodedImages(images=self.train, tokenizer=self.tokenizer))
        if isinstance(val, PixelSource):
            val = EncodedImages(images=val, tokenizer=self.tokenizer).in_memory("encoding validation images")
        return replace(self, val=val, remembered=remembered)

    def remember_in(self, folder: Path, ranks: Ranks, resumed: bool, seen: int) -> None:
        """Keep the tokens of training images, where they are remembered, in a run folder, and print so.

        With `resumed`, tokens that are there already are used. A warning says if the images of the whole run, `seen`
        with repeats, repeat often.
        """
        remembered, path = self.remembered, folder / TOKENS
        if remembered is None:
            return
        ranks.on_main(lambda: remembered.make_file(path, keep=resumed))
        remembered.use_file(path)
        if not ranks.main:
            return
        n, first = len(remembered), "training images are"
        if known := remembered.known():
            first = f"the tokens of {known:,} of {n:,} training images are known, others are"
        kept = f"{first} encoded when they first come up, and their tokens kept in {path}"
        print(f"{kept}; mvar tokenize makes a cache for several runs", file=sys.stderr)
        if (epochs := seen / n) > MOST_EPOCHS:
            why = "a generator soon knows so few images by heart; --augment shift,scale changes them each time"
            warnings.warn(f"each image is seen {epochs:.0f} times, always the same: {why}", stacklevel=2)


def load_tokenizer(source: str, device: str | torch.device | None) -> Tokenizer:
    """The tokenizer of a model, in float32, or a ValueError that begins with "tokenizer = "."""
    return load_named("tokenizer", source, device).tokenizer
