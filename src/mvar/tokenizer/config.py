"""The tokenizer's hyperparameters and presets; without torch, so that `--help` stays quick."""

from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any

from mvar.scales import SIDES_256, SIDES_512, LatentChannels, ScaleSchedule, Side, Sides, VocabSize, side_problems
from mvar.settings import Place, Share, Weight, Whole, raise_problems, settings

MOST_LEVELS = 8  # each halves the sides of the one before


@settings
class TokenizerConfig:
    """A multi-scale VQ-VAE (VAR, section 3.2, on the f16 autoencoder of latent diffusion).

    Attributes:
        channels: width of the highest-resolution level of encoder and decoder.
        multipliers: width of each level as a multiple of `channels`; one 2x downsampling between levels.
        res_blocks: residual blocks of an encoder level; a decoder level has one more.
        norm_groups: groups of every group normalisation. A group of one channel loses that channel's mean: narrow
            networks learn faster with a few channels per group.
        latent_channels: Z, channels of the latent and of a code vector.
        vocab_size: V, number of codes.
        phis: residual convolutions phi after upsampling; n of them shared over the scales, 0 for one per scale.
        phi_ratio: r in phi(h) = (1 - r) h + r conv(h).
        commitment: weight of the encoder's half of the quantiser loss.
        sides: token maps from coarse to fine, p for p x p or [h, w].
    """

    channels: Annotated[int, Whole(1, 4096)] = 160
    multipliers: Annotated[tuple[int, ...], Whole(1, 64)] = (1, 1, 2, 2, 4)
    res_blocks: Annotated[int, Whole(1, 64)] = 2
    norm_groups: Annotated[int, Whole(1, 4096)] = 32
    latent_channels: LatentChannels = 32
    vocab_size: VocabSize = 4096
    phis: Place = 4
    phi_ratio: Share = 0.5
    commitment: Weight = 0.25
    sides: Sides = field(default_factory=lambda: list(SIDES_256))

    @property
    def schedule(self) -> ScaleSchedule:
        """The token maps."""
        return ScaleSchedule(self.sides)

    @property
    def downsampling(self) -> int:
        """Pixels per token of the finest map, along a side."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that this schedule tokenizes."""
        h, w = self.schedule.shapes[-1]
        return h * self.downsampling, w * self.downsampling

    def __post_init__(self) -> None:
        raise_problems(self._problems())

    def _problems(self) -> Iterator[str]:
        if not 1 <= len(self.multipliers) <= MOST_LEVELS:
            yield f"multipliers = {self.multipliers}: give 1 to {MOST_LEVELS}, one for each level"
        if bad := [m for m in self.multipliers if m * self.channels % self.norm_groups]:
            fix = f"channels * {bad[0]} must be a multiple of norm_groups = {self.norm_groups}"
            yield f"channels = {self.channels}: {fix}"
        yield from side_problems(self.sides)


def _small(sides: list[Side], **changes: Any) -> TokenizerConfig:
    return TokenizerConfig(channels=32, res_blocks=1, latent_channels=16, vocab_size=1024, sides=sides, **changes)


PRESETS: dict[str, TokenizerConfig] = {
    "f16-256": TokenizerConfig(),
    "f16-512": TokenizerConfig(sides=list(SIDES_512)),
    "tiny32": _small([1, 2, 3, 4, 6, 8], multipliers=(1, 2, 3)),
    "quick32": _small([1, 2, 3, 5, 8], multipliers=(1, 1, 2), norm_groups=8),
    "tiny64": _small([1, 2, 3, 4, 6, 8], multipliers=(1, 2, 4, 4)),
}
