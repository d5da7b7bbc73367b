"""The convolutional encoder and decoder around the quantiser.

Shapes: B batch, c channels of a level, H W pixels of a level.
Source: the VQ-GAN of latent diffusion (Rombach et al. 2022), as VAR uses it; parameter names are those of its files.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from mvar.tokenizer.config import TokenizerConfig


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv3(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip; the skip is a 1x1 convolution where the width changes."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in, groups)
        self.conv1 = _conv3(channels_in, channels_out)
        self.norm2 = _norm(channels_out, groups)
        self.conv2 = _conv3(channels_out, channels_out)
        self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x_BcHW: Tensor) -> Tensor:
        h_BcHW = self.conv1(F.silu(self.norm1(x_BcHW)))
        h_BcHW = self.conv2(F.silu(self.norm2(h_BcHW)))
        return self.nin_shortcut(x_BcHW) + h_BcHW


class PixelAttention(nn.Module):
    """One-head self-attention over all pixels of the lowest resolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BcHW: Tensor) -> Tensor:
        B, c, H, W = x_BcHW.shape
        qkv_B3cL = self.qkv(self.norm(x_BcHW)).reshape(B, 3, c, H * W)
        q_B1Lc, k_B1Lc, v_B1Lc = qkv_B3cL.transpose(2, 3).split(1, dim=1)
        y_B1Lc = F.scaled_dot_product_attention(q_B1Lc, k_B1Lc, v_B1Lc)  # scale is channels ** -0.5
        return x_BcHW + self.proj_out(y_B1Lc.transpose(2, 3).reshape(B, c, H, W))


class Resample(nn.Module):
    """Halve the resolution, padded at the right and bottom only, or double it by nearest neighbours; a convolution."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = _conv3(channels, channels) if up else nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x_BcHW: Tensor) -> Tensor:
        return self.conv(F.interpolate(x_BcHW, scale_factor=2) if self.up else F.pad(x_BcHW, (0, 1, 0, 1)))


def _middle(channels: int, groups: int) -> nn.Sequential:
    """Residual block, attention, residual block at the lowest resolution."""
    parts = nn.Sequential()
    parts.block_1 = ResidualBlock(channels, channels, groups)
    parts.attn_1 = PixelAttention(channels, groups)
    parts.block_2 = ResidualBlock(channels, channels, groups)
    return parts


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention if `attends`; then a resampling, if set."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, groups: int, attends: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.block = nn.ModuleList(ResidualBlock(a, b, groups) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(PixelAttention(channels_out, groups) for _ in range(blocks if attends else 0))

    def forward(self, x_BcHW: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x_BcHW = block(x_BcHW)
            if self.attn:
                x_BcHW = self.attn[i](x_BcHW)
        resample = getattr(self, "downsample", None) or getattr(self, "upsample", None)
        return resample(x_BcHW) if resample else x_BcHW


class Encoder(nn.Module):
    """Pixels in [-1, 1] (B, 3, H, W) to latents (B, Z, H / f, W / f)."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        lowest = len(widths) - 1
        self.conv_in = _conv3(3, config.channels)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            width_in = widths[i - 1] if i else config.channels
            level = Level(width_in, width, config.res_blocks, config.norm_groups, attends=i == lowest)
            if i < lowest:
                level.downsample = Resample(width, up=False)
            self.down.append(level)
        self.mid = _middle(widths[-1], config.norm_groups)
        self.norm_out = _norm(widths[-1], config.norm_groups)
        self.conv_out = _conv3(widths[-1], config.latent_channels)

    def forward(self, x_B3HW: Tensor) -> Tensor:
        h_BcHW = self.conv_in(x_B3HW)
        for level in self.down:
            h_BcHW = level(h_BcHW)
        return self.conv_out(F.silu(self.norm_out(self.mid(h_BcHW))))


class Decoder(nn.Module):
    """Latents (B, Z, h, w) to pixels (B, 3, h * f, w * f), about [-1, 1], not clamped."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        lowest = len(widths) - 1
        self.conv_in = _conv3(config.latent_channels, widths[-1])
        self.mid = _middle(widths[-1], config.norm_groups)
        self.up = nn.ModuleList()  # up[0] is the highest resolution and runs last
        for i, width in enumerate(widths):
            width_in = widths[min(i + 1, lowest)]
            level = Level(width_in, width, config.res_blocks + 1, config.norm_groups, attends=i == lowest)
            if i > 0:
                level.upsample = Resample(width, up=True)
            self.up.append(level)
        self.norm_out = _norm(widths[0], config.norm_groups)
        self.conv_out = _conv3(widths[0], 3)

    def forward(self, z_BZhw: Tensor) -> Tensor:
        h_BcHW = self.mid(self.conv_in(z_BZhw.to(self.conv_in.weight.dtype)))
        for level in reversed(self.up):
            h_BcHW = level(h_BcHW)
        return self.conv_out(F.silu(self.norm_out(h_BcHW)))
