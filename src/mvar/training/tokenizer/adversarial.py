"""Adversarial loss: a patch discriminator, its hinge loss, and differentiable augmentation of its inputs.

Shapes: B images, H W pixels, h w patches; U random numbers per image.
Sources: PatchGAN (Isola et al. 2017); hinge loss and spectral normalisation (Miyato et al. 2018); DiffAugment (Zhao et
al. 2020).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

LEVELS = 3  # of stride 2
AUGMENT_NUMBERS = 7  # random numbers that `augment` needs per image


class PatchDiscriminator(nn.Module):
    """Convolutions of stride 2 down to patches of about 16 pixels, each scored as real or not.

    Spectral normalisation on all but the head, whose scale is free: real and restored images differ so little that a
    network without gain could not tell them apart.
    """

    def __init__(self, channels: int) -> None:
        """`channels` is the width of the first level; each further one has twice as many."""
        super().__init__()
        widths = [3, *(channels * 2**i for i in range(LEVELS))]
        self.down = nn.ModuleList(_normed(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in pairwise(widths))
        self.mix = _normed(nn.Conv2d(widths[-1], widths[-1], 3, padding=1))
        self.head = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Scores (B, 1, h, w), larger for real, of pixels in [-1, 1]."""
        x_BChw = pixels_B3HW
        for convolution in self.down:
            x_BChw = F.leaky_relu(convolution(x_BChw), 0.2)
        return self.head(F.leaky_relu(self.mix(x_BChw), 0.2)).float()


def _normed(convolution: nn.Conv2d) -> nn.Module:
    """With spectral normalisation, except on torch's meta device, where estimating norms takes seconds."""
    return convolution if convolution.weight.is_meta else spectral_norm(convolution)


def hinge(real_B1hw: Tensor, fake_B1hw: Tensor) -> Tensor:
    """The discriminator's loss: real scores above 1, others below -1."""
    return 0.5 * (F.relu(1 - real_B1hw).mean() + F.relu(1 + fake_B1hw).mean())


def augment(pixels_B3HW: Tensor, noise_BU: Tensor) -> Tensor:
    """Differentiable brightness, saturation, contrast, shift and cut-out of pixels in [-1, 1].

    Each image is changed by its own `AUGMENT_NUMBERS` numbers in [0, 1).
    """
    H, W = pixels_B3HW.shape[-2:]
    bright, colour, contrast, down, right, top, left = (numbers_B[:, None, None, None] for numbers_B in noise_BU.T)
    x = pixels_B3HW + (bright - 0.5)
    mean_B1HW = x.mean(1, keepdim=True)
    x = mean_B1HW + (x - mean_B1HW) * (2 * colour)
    mean_B111 = x.mean((1, 2, 3), keepdim=True)
    x = mean_B111 + (x - mean_B111) * (0.5 + contrast)
    x = _shifted(x, 2, ((2 * down - 1) * H / 8).round().long())
    x = _shifted(x, 3, ((2 * right - 1) * W / 8).round().long())
    y_B1H1 = torch.arange(H, device=x.device)[:, None] - (top * H).long()  # from the centre of the cut-out,
    x_B11W = torch.arange(W, device=x.device) - (left * W).long()  # which is half as high and wide as the image
    cut_B1HW = (y_B1H1 >= -H / 4) & (y_B1H1 < H / 4) & (x_B11W >= -W / 4) & (x_B11W < W / 4)
    return x * ~cut_B1HW


def _shifted(x_B3HW: Tensor, dim: int, by_B111: Tensor) -> Tensor:
    """Shifted along one side by a number of pixels per image, filled with zeros."""
    side = x_B3HW.shape[dim]
    shape = [1, 1, 1, 1]
    shape[dim] = side
    source = torch.arange(side, device=x_B3HW.device).view(shape) + by_B111
    moved = x_B3HW.gather(dim, source.clamp(0, side - 1).expand_as(x_B3HW))
    return moved * ((source >= 0) & (source < side))
