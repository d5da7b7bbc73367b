"""The multi-scale VQ-VAE: images to token maps and back.

Shapes: B batch, Z latent channels, K scales; P tokens of a scale, H W pixels or the finest sides, L all tokens.
Source: VAR (Tian et al. 2024), section 3.2.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mvar.ops.numerics import CAUSE, REMEDY, all_finite
from mvar.scales import ScaleSchedule, Side
from mvar.tokenizer.autoencoder import Decoder, Encoder
from mvar.tokenizer.config import TokenizerConfig
from mvar.tokenizer.quantizer import MultiScaleQuantizer, Quantized

ROUNDING = 1e-3  # how far pixels may exceed [0, 1]: rounding of resizing or half precision


class Tokenizer(nn.Module):
    """Encoder, multi-scale quantiser and decoder; public methods take and return pixels in [0, 1]."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        Z = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantizer = MultiScaleQuantizer(config)
        self.quant_conv = nn.Conv2d(Z, Z, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(Z, Z, 3, padding=1)

    def latent(self, pixels_B3HW: Tensor) -> Tensor:
        """The latent f (B, Z, h, w) of pixels in [0, 1], before quantisation."""
        expected = (3, *self.config.image_shape)
        if pixels_B3HW.dim() != 4 or tuple(pixels_B3HW.shape[1:]) != expected:
            raise ValueError(
                f"pixels have shape {tuple(pixels_B3HW.shape)}, expected (batch, {', '.join(map(str, expected))})"
            )
        # Channels first: on a CPU, group normalisation's backward takes ten times as long with channels last.
        return self.quant_conv(self.encoder((2 * pixels_B3HW - 1).contiguous()))

    def forward(self, pixels_B3HW: Tensor, scales_B: Tensor | None = None) -> tuple[Tensor, Quantized]:
        """The training pass on pixels in [0, 1], of which each image keeps `scales_B` scales (None: all).

        Returns the reconstruction in model space (about [-1, 1], not clamped) and the quantiser's results.
        """
        quantized = self.quantizer.quantize(self.latent(pixels_B3HW), scales_B)
        return self.decoded(quantized.f_hat_BZHW), quantized

    @torch.no_grad()
    def encode(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Token maps of images in [0, 1], one LongTensor (B, P_k) per scale, coarse to fine."""
        fix = "give RGB in [0, 1], such as 8-bit images / 255"
        if not pixels_B3HW.is_floating_point():
            raise ValueError(f"pixels are {pixels_B3HW.dtype}: {fix}")
        if pixels_B3HW.numel():
            low, high = (float(end) for end in pixels_B3HW.aminmax())
            if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # true of NaN too
                raise ValueError(f"pixels go from {low:.4g} to {high:.4g}: {fix}")
        return self.quantizer.encode(self.latent(pixels_B3HW))

    @torch.no_grad()
    def decode(self, tokens: Sequence[Tensor]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of token maps; a coarse image of the first few."""
        return self.decode_latent(self.quantizer.f_hat(tokens))

    @torch.no_grad()
    def decode_latent(self, f_hat_BZHW: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of a latent."""
        return self.to_pixels(self.decoded(f_hat_BZHW))

    def decoded(self, f_hat_BZHW: Tensor) -> Tensor:
        """What the decoder makes of a latent, in model space (about [-1, 1], not clamped)."""
        return self.decoder(self.post_quant_conv(f_hat_BZHW))

    def to_pixels(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels in [0, 1] from model space; raises FloatingPointError if any is NaN or infinite."""
        if not all_finite(pixels_B3HW):
            raise FloatingPointError(f"pixels: the decoder gives NaN or infinity: {CAUSE}; {REMEDY}")
        return (pixels_B3HW.float().clamp(-1, 1) + 1) / 2

    def reconstruct(self, pixels_B3HW: Tensor) -> Tensor:
        """Images after a round trip through their tokens."""
        return self.decode(self.encode(pixels_B3HW))

    def rescheduled(self, sides: list[Side]) -> "Tokenizer":
        """A tokenizer of the same weights at other scales."""
        config = replace(self.config, sides=list(ScaleSchedule(sides).sides))
        if self.config.phis == 0 and len(sides) != len(self.config.sides):
            has = f"the tokenizer has {len(self.config.sides)} and a residual convolution for each"
            raise ValueError(f"sides has {len(sides)} scales, {has}: give as many")
        with torch.device("meta"):
            tokenizer = Tokenizer(config)
        tokenizer.load_state_dict(self.state_dict(), assign=True)
        return tokenizer.train(self.training)

    def codes_differ(self, other: "Tokenizer") -> str | None:
        """The first weight or setting by which two tokenizers encode differently; None if only decoders differ."""
        if self.config != other.config:
            return "config"
        mine, theirs = self.state_dict(), other.state_dict()
        encoding = [name for name in mine if not name.startswith(("decoder.", "post_quant_conv."))]
        return next((name for name in encoding if not torch.equal(mine[name].cpu(), theirs[name].cpu())), None)

    def generator_inputs(self, tokens: Sequence[Tensor]) -> Tensor:
        """Teacher-forcing input (B, L - P_0, Z); see `MultiScaleQuantizer.generator_inputs`."""
        return self.quantizer.generator_inputs(tokens)

    def fingerprint(self) -> str:
        """A hash of the weights, by which runs and token caches identify the tokenizer."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()
