"""Residual vector quantisation over scales: the map between a latent and its token maps.

Shapes: B batch, Z latent channels, V codes, K scales; P tokens of a scale, h w its sides, H W the finest sides.
Source: VAR (Tian et al. 2024), section 3.2, algorithms 1 and 2.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvar.ops.numerics import without_autocast
from mvar.tokenizer.config import TokenizerConfig

NEAREST_ROWS = 16384  # vectors compared with the codebook at once: bounds the distances' memory


class Quantized(NamedTuple):
    """One training pass through the quantiser."""

    f_hat_BZHW: Tensor  # straight-through: forward value f_hat, gradient to the encoder
    loss: Tensor  # scalar, codebook and commitment terms averaged over the scales
    tokens: list[Tensor]  # one LongTensor (B, P_k) per scale
    residuals: list[Tensor]  # each scale's input, (B, Z, h_k, w_k), detached
    errors: Tensor  # mean squared difference of latent and f_hat before the first and after each scale, (K + 1,)


class MultiScaleQuantizer(nn.Module):
    """One codebook for all scales, and a few residual convolutions phi that refine what a scale adds.

    `add` is the one place where f_hat grows: encoding, teacher forcing, sampling and editing go through it.
    Everything here runs in float32, autocast off.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.schedule, self.commitment, self.phi_ratio = config.schedule, config.commitment, config.phi_ratio
        Z, K = config.latent_channels, len(self.schedule)
        self.codebook = nn.Parameter(torch.empty(config.vocab_size, Z))
        if not self.codebook.is_meta:  # on which torch would load its compiler, for seconds
            nn.init.normal_(self.codebook)
        phis = config.phis or K
        self.phi = nn.ModuleList(nn.Conv2d(Z, Z, 3, padding=1) for _ in range(phis))
        self.phi_of_scale = phi_of_scale(K, phis)

    def zeros(self, batch: int) -> Tensor:
        """The f_hat (batch, Z, H, W) before the first scale, on the codebook's device."""
        return self.codebook.new_zeros(batch, self.codebook.shape[1], *self.schedule.shapes[-1], dtype=torch.float32)

    def input_of(self, f_BZHW: Tensor, k: int) -> Tensor:
        """Area-downsample a full-size latent to scale k, (B, Z, h_k, w_k)."""
        if self.schedule.shapes[k] == tuple(f_BZHW.shape[-2:]):
            return f_BZHW
        return F.adaptive_avg_pool2d(f_BZHW, self.schedule.shapes[k])

    def nearest(self, rest_BZhw: Tensor, k: int) -> Tensor:
        """The code nearest (L2, first of equals) to each vector of a map of scale k, (B, P_k)."""
        B, Z = rest_BZhw.shape[:2]
        with without_autocast(rest_BZhw):
            e_VZ = self.codebook.float()
            norm_V = e_VZ.square().sum(1)
            tokens = []
            for z_NZ in rest_BZhw.float().permute(0, 2, 3, 1).reshape(-1, Z).split(NEAREST_ROWS):
                distance_NV = z_NZ.square().sum(1, keepdim=True) + norm_V
                tokens.append(torch.addmm(distance_NV, z_NZ, e_VZ.T, alpha=-2).argmin(dim=1))
            return torch.cat(tokens).view(B, -1)

    def lookup(self, tokens_BP: Tensor, k: int) -> Tensor:
        """The code vectors of scale k's tokens as a map, (B, Z, h_k, w_k)."""
        h, w = self.schedule.shapes[k]
        if tokens_BP.ndim != 2 or tokens_BP.shape[1] != h * w:
            raise ValueError(f"tokens have shape {tuple(tokens_BP.shape)}: scale {k} needs (B, {h * w})")
        try:
            codes_BPZ = F.embedding(tokens_BP, self.codebook)
        except IndexError as error:  # on the CPU; CUDA has its own error
            low, high, V = int(tokens_BP.min()), int(tokens_BP.max()), len(self.codebook)
            raise ValueError(f"tokens of scale {k} lie in {low}..{high}; give 0..{V - 1}") from error
        return codes_BPZ.transpose(1, 2).reshape(len(tokens_BP), -1, h, w)

    def add(self, f_hat_BZHW: Tensor, codes_BZhw: Tensor, k: int) -> Tensor:
        """f_hat after scale k: upsample the code vectors, refine by phi_k, sum."""
        with without_autocast(f_hat_BZHW):
            h_BZHW = codes_BZhw.float()
            if k < len(self.schedule) - 1:
                h_BZHW = F.interpolate(h_BZHW, size=self.schedule.shapes[-1], mode="bicubic", align_corners=False)
            if self.phi_ratio:
                phi = self.phi[self.phi_of_scale[k]]
                h_BZHW = (1 - self.phi_ratio) * h_BZHW + self.phi_ratio * phi(h_BZHW)
            return f_hat_BZHW + h_BZHW

    def encode(self, f_BZHW: Tensor) -> list[Tensor]:
        """Quantise latents; one LongTensor (B, P_k) per scale."""
        return self.quantize(f_BZHW.detach()).tokens

    def quantize(self, f_BZHW: Tensor, scales_B: Tensor | None = None) -> Quantized:
        """Quantise latents scale by scale, with losses and gradients for training.

        The loss is the mean over scales of commitment * MSE(sg[f_hat_k], f) + MSE(f_hat_k, sg[f]). Each image keeps
        `scales_B` of 1..K scales (quantiser dropout, SoundStream, section III.C); later ones add nothing to its f_hat.
        """
        f_BZHW = f_BZHW.float()
        target_BZHW = f_BZHW.detach()
        f_hat_BZHW = torch.zeros_like(target_BZHW)
        loss = f_BZHW.new_zeros(())
        tokens, residuals, errors = [], [], [target_BZHW.square().mean()]
        for k in range(len(self.schedule)):
            rest_BZhw = self.input_of(target_BZHW - f_hat_BZHW.detach(), k)
            tokens_BP = self.nearest(rest_BZhw, k)
            finer_BZHW = self.add(f_hat_BZHW, self.lookup(tokens_BP, k), k)
            if scales_B is not None:
                finer_BZHW = torch.where((k < scales_B)[:, None, None, None], finer_BZHW, f_hat_BZHW)
            f_hat_BZHW = finer_BZHW
            error = F.mse_loss(f_hat_BZHW, target_BZHW)
            loss = loss + error + self.commitment * F.mse_loss(f_hat_BZHW.detach(), f_BZHW)
            tokens.append(tokens_BP)
            residuals.append(rest_BZhw)
            errors.append(error.detach())
        straight_BZHW = f_BZHW + (f_hat_BZHW.detach() - target_BZHW)
        return Quantized(straight_BZHW, loss / len(self.schedule), tokens, residuals, torch.stack(errors))

    def partial_sums(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """f_hat (B, Z, H, W) after each of the given scales, at most K."""
        f_hat_BZHW = self.zeros(len(tokens[0]))
        sums = []
        for k, tokens_BP in enumerate(tokens):
            f_hat_BZHW = self.add(f_hat_BZHW, self.lookup(tokens_BP, k), k)
            sums.append(f_hat_BZHW)
        return sums

    def f_hat(self, tokens: Sequence[Tensor]) -> Tensor:
        """The latent (B, Z, H, W) of token maps."""
        return self.partial_sums(tokens)[-1]

    @torch.no_grad()
    def generator_inputs(self, tokens: Sequence[Tensor]) -> Tensor:
        """Teacher-forcing input (B, L - P_0, Z): for each scale but the first, f_hat of the scales before it."""
        if len(tokens) == 1:
            return self.codebook.new_zeros(len(tokens[0]), 0, self.codebook.shape[1])
        inputs = [
            self.input_of(f_hat_BZHW, k).flatten(2).transpose(1, 2)
            for k, f_hat_BZHW in enumerate(self.partial_sums(tokens[:-1]), start=1)
        ]
        return torch.cat(inputs, dim=1)


def code_usage(counts_V: Tensor) -> tuple[int, float]:
    """How many codes were used at least once, and the perplexity exp(entropy) of their shares."""
    share_V = counts_V.double() / counts_V.sum().clamp(min=1)
    return int((counts_V > 0).sum()), float((-torch.xlogy(share_V, share_V).sum()).exp())


def phi_of_scale(scales: int, phis: int) -> list[int]:
    """Which of the shared phis each scale uses: the first one whose tick is nearest to k / (K - 1), in float64."""
    edge = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(edge, 1 - edge, phis)
    return [int(np.argmin(np.abs(ticks - k / max(scales - 1, 1)))) for k in range(scales)]
