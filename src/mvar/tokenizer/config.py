"""The tokenizer's hyperparameters and presets; standard library only, so that `--help` stays quick."""

from dataclasses import dataclass, field

from mvar.scales import SIDES_256, SIDES_512, ScaleSchedule, Side
from mvar.validation import number_problems, outside, raise_problems

MOST_LEVELS = 8  # each halves the sides of the one before
MOST_PIXELS = 8192  # along a side of an image


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """A multi-scale VQ-VAE (VAR, section 3.2, on the f16 autoencoder of latent diffusion).

    Attributes:
        channels: width of the highest-resolution level of encoder and decoder.
        multipliers: width of each level as a multiple of `channels`; one 2x downsampling between levels.
        res_blocks: residual blocks of an encoder level; a decoder level has one more.
        norm_groups: groups of every group normalisation. A group of one channel loses how bright that channel is:
            narrow networks learn faster with a few channels a group.
        latent_channels: Z, channels of the latent and of a code vector.
        vocab_size: V, number of codes.
        phis: residual convolutions phi after upsampling; n of them shared over the scales, 0 for one a scale.
        phi_ratio: r in phi(h) = (1 - r) h + r conv(h).
        commitment: weight of the encoder's half of the quantiser loss.
        sides: token maps from coarse to fine, p for p x p or [h, w].
    """

    channels: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    norm_groups: int = 32
    latent_channels: int = 32
    vocab_size: int = 4096
    phis: int = 4
    phi_ratio: float = 0.5
    commitment: float = 0.25
    sides: list[Side] = field(default_factory=lambda: list(SIDES_256))

    @property
    def schedule(self) -> ScaleSchedule:
        """The token maps."""
        return ScaleSchedule(self.sides)

    @property
    def downsampling(self) -> int:
        """Pixels along a side for one token of the finest map."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) in pixels of the images that this schedule tokenizes."""
        h, w = self.schedule.shapes[-1]
        return h * self.downsampling, w * self.downsampling

    def problems(self, section: str = "tokenizer") -> list[str]:
        """What is wrong with this config, a line each; empty when it is sound.

        Args:
            section: what the fields are called after.
        """
        found = number_problems(vars(self), f"{section}.")
        if not 1 <= len(self.multipliers) <= MOST_LEVELS:
            found.append(f"{section}.multipliers = {self.multipliers}: give 1 to {MOST_LEVELS}, one for each level")
        widths = {name: getattr(self, name) for name in ("channels", "multipliers", "norm_groups")}
        if not number_problems(widths) and (
            bad := [m for m in self.multipliers if m * self.channels % self.norm_groups]
        ):
            found.append(
                f"{section}.channels = {self.channels}: channels * {bad[0]} must be a multiple of "
                f"norm_groups = {self.norm_groups}"
            )
        found += outside(self, ("phi_ratio",), lambda ratio: 0 <= ratio <= 1, "must lie in [0, 1]", f"{section}.")
        found += outside(self, ("commitment",), lambda weight: weight >= 0, "must be 0 or more", f"{section}.")
        if number_problems({"sides": self.sides}):
            return found
        try:
            height, width = self.image_shape
            if not found and max(height, width) > MOST_PIXELS:
                size = f"{width}x{height} pixels, more than {MOST_PIXELS} along a side"
                found.append(f"{section}.sides, {section}.multipliers: are for images of {size}; give fewer")
        except ValueError as error:
            found.append(f"{section}.sides = {self.sides}: {error}")
        return found

    def validate(self) -> None:
        """Raise ValueError with every problem, a line each."""
        raise_problems(self.problems())


PRESETS: dict[str, TokenizerConfig] = {
    "f16-256": TokenizerConfig(),
    "f16-512": TokenizerConfig(sides=list(SIDES_512)),
    "tiny32": TokenizerConfig(
        channels=32, multipliers=(1, 2, 3), res_blocks=1, latent_channels=16, vocab_size=1024, sides=[1, 2, 3, 4, 6, 8]
    ),
    "quick32": TokenizerConfig(
        channels=32,
        multipliers=(1, 1, 2),
        res_blocks=1,
        norm_groups=8,
        latent_channels=16,
        vocab_size=1024,
        sides=[1, 2, 3, 5, 8],
    ),
    "tiny64": TokenizerConfig(
        channels=32,
        multipliers=(1, 2, 4, 4),
        res_blocks=1,
        latent_channels=16,
        vocab_size=1024,
        sides=[1, 2, 3, 4, 6, 8],
    ),
}
