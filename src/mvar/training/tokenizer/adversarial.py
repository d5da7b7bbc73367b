"""Adversarial loss: a patch discriminator, its hinge loss, and differentiable augmentation of what it sees.

Shapes: B images, H W pixels, h w patches; U random numbers of an image.
Source: PatchGAN (Isola et al. 2017); hinge loss and spectral normalisation (Miyato et al. 2018); DiffAugment (Zhao et
al. 2020).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

AUGMENT_NUMBERS = 7  # random numbers an image needs for `augment`


class PatchDiscriminator(nn.Module):
    """Convolutions of stride 2 down to patches of about 16 pixels, each judged real or not.

    Spectral normalisation on all but the head, whose scale is free: real and restored images differ so little that
    scores of a network without gain would lie on top of each other.
    """

    def __init__(self, channels: int, levels: int = 3) -> None:
        """Args:
        channels: of the first level; each of the next has twice as many, at most eight times.
        levels: of stride 2.
        """
        super().__init__()
        widths = [3, *(channels * min(2**i, 8) for i in range(levels))]
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
    """With spectral normalisation; left as it is on torch's meta device, where estimating norms takes seconds."""
    return convolution if convolution.weight.is_meta else spectral_norm(convolution)


def hinge(real_B1hw: Tensor, fake_B1hw: Tensor) -> Tensor:
    """The discriminator's loss: real scores above 1, others below -1."""
    return 0.5 * (F.relu(1 - real_B1hw).mean() + F.relu(1 + fake_B1hw).mean())


def augment(pixels_B3HW: Tensor, noise_BU: Tensor) -> Tensor:
    """Brightness, saturation, contrast, a shift and a cut-out, differentiable; the same for real and restored images.

    Args:
        pixels_B3HW: in [-1, 1].
        noise_BU: numbers in [0, 1), `AUGMENT_NUMBERS` an image.
    """
    H, W = pixels_B3HW.shape[-2:]
    bright, colour, contrast, down, right, top, left = noise_BU.unbind(1)
    x = pixels_B3HW + _each(bright - 0.5)
    x = _spread(x, x.mean(1, keepdim=True), _each(2 * colour))
    x = _spread(x, x.mean((1, 2, 3), keepdim=True), _each(0.5 + contrast))
    x = _shifted(x, 2, ((2 * down - 1) * H / 8).round().long())
    x = _shifted(x, 3, ((2 * right - 1) * W / 8).round().long())
    cut_BHW = _inside(H, (top * H).long(), x)[:, :, None] & _inside(W, (left * W).long(), x)[:, None]
    return x * ~cut_BHW[:, None]


def _each(numbers_B: Tensor) -> Tensor:
    return numbers_B[:, None, None, None]


def _spread(x_B3HW: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    return mean + (x_B3HW - mean) * factor


def _shifted(x_B3HW: Tensor, dim: int, by_B: Tensor) -> Tensor:
    """Moved along one side by each image's number of pixels, zeros where nothing was."""
    side = x_B3HW.shape[dim]
    source_Bs = torch.arange(side, device=x_B3HW.device) + by_B[:, None]
    shape = [len(by_B), 1, 1, 1]
    shape[dim] = side
    moved = x_B3HW.gather(dim, source_Bs.clamp(0, side - 1).view(shape).expand_as(x_B3HW))
    return moved * ((source_Bs >= 0) & (source_Bs < side)).view(shape)


def _inside(side: int, centre_B: Tensor, like: Tensor) -> Tensor:
    """Which places (B, side) lie within a quarter of the side of the centre: a cut-out of half the side."""
    away_Bs = torch.arange(side, device=like.device) - centre_B[:, None]
    return (away_Bs >= -side / 4) & (away_Bs < side / 4)
