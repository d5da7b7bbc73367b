"""Vision transformers of DINO and DINOv2, with or without registers, in their authors' key names.

Shapes: B images, H W pixels, h w the grid of patches, S side of the trained grid, C width, T tokens (class, R
registers, h w patches), n heads, d = 64 head width.
Source: Dosovitskiy et al. 2021 (ViT); Caron et al. 2021 (DINO); Oquab et al. 2023 (DINOv2); Darcet et al. 2024
(registers).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mvar.features.base import FeatureNetwork, take_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, on pixels in [0, 1]
HEAD_DIM = 64  # in every published model
EPS = 1e-6
MAPS = 4
# Without registers the published networks read the position embedding at slightly finer steps: h + 0.1 rows, not h.
OFFSET = 0.1


class DINO(FeatureNetwork):
    """The patches' tokens after four evenly spaced blocks, each through the final normalisation.

    Args:
        tensors: `cls_token`, `pos_embed`, `patch_embed.proj.*`, `blocks.i.*`, `norm.*`, for DINOv2 `blocks.i.ls1.gamma`
            and `ls2.gamma`, with registers `register_tokens`. Their shapes give depth, width, patch, grid and heads.

    Raises:
        ValueError, KeyError: these are not such a network's weights.
    """

    mean_3hw: Tensor
    std_3hw: Tensor

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("mean_3hw", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std_3hw", torch.tensor(STD).view(3, 1, 1), persistent=False)
        tensors = {name: tensor for name, tensor in tensors.items() if name != "mask_token"}  # for training only
        C, _, self.patch, _ = tensors["patch_embed.proj.weight"].shape
        if C % HEAD_DIM:
            raise ValueError(f"width {C} is no multiple of the head width {HEAD_DIM}")
        positions = tensors["pos_embed"].shape[1]
        self.side = math.isqrt(positions - 1)
        if self.side**2 + 1 != positions:
            raise ValueError(f"pos_embed has {positions} positions, expected 1 and a square")
        hidden = len(tensors["blocks.0.mlp.fc1.weight"])
        depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
        with torch.device("meta"):
            self.cls_token = nn.Parameter(torch.empty(1, 1, C))
            self.pos_embed = nn.Parameter(torch.empty(1, positions, C))
            self.register_tokens = None
            if "register_tokens" in tensors:
                self.register_tokens = nn.Parameter(torch.empty_like(tensors["register_tokens"], device="meta"))
            self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, C, self.patch, self.patch)})
            self.blocks = nn.ModuleList(_Block(C, hidden, "blocks.0.ls1.gamma" in tensors) for _ in range(depth))
            self.norm = nn.LayerNorm(C, EPS)
        take_weights(self, tensors)
        self.taps = {-(-depth * i // MAPS) for i in range(1, MAPS + 1)}  # fewer in a network of fewer blocks

    def maps(self, pixels_B3HW: Tensor) -> list[Tensor]:
        """Up to four maps (B, C, h, w) of one size.

        Sides that are no multiple of the patch are resized to the nearest one, at least two patches.
        """
        h, w = (max(2, round(side / self.patch)) for side in pixels_B3HW.shape[2:])
        size = (h * self.patch, w * self.patch)
        if pixels_B3HW.shape[2:] != size:
            pixels_B3HW = F.interpolate(pixels_B3HW, size, mode="bicubic", antialias=True)
        patches_BChw = self.patch_embed["proj"]((pixels_B3HW - self.mean_3hw) / self.std_3hw)
        x_BTC = torch.cat((self._first(len(pixels_B3HW)), self._placed(patches_BChw).flatten(2).mT), dim=1)
        maps = []
        for i, block in enumerate(self.blocks, 1):
            x_BTC = block(x_BTC)
            if i in self.taps:
                maps.append(self.norm(x_BTC)[:, -h * w :].mT.unflatten(2, (h, w)))
        return maps

    def _first(self, B: int) -> Tensor:
        """The tokens before the patches: class token with its position embedding, registers without one."""
        first_1RC = self.cls_token + self.pos_embed[:, :1]
        if self.register_tokens is not None:
            first_1RC = torch.cat((first_1RC, self.register_tokens), dim=1)
        return first_1RC.expand(B, -1, -1)

    def _placed(self, patches_BChw: Tensor) -> Tensor:
        """Adds the position embedding, interpolated to the grid as the published networks do it."""
        positions_1CSS = self.pos_embed[:, 1:].mT.unflatten(2, (self.side, self.side))
        h, w = patches_BChw.shape[2:]
        if (h, w) == (self.side, self.side):
            return patches_BChw + positions_1CSS
        if self.register_tokens is not None:
            return patches_BChw + F.interpolate(positions_1CSS, (h, w), mode="bicubic", antialias=True)
        scale = ((h + OFFSET) / self.side, (w + OFFSET) / self.side)
        return patches_BChw + F.interpolate(positions_1CSS, scale_factor=scale, mode="bicubic")


class _Block(nn.Module):
    def __init__(self, C: int, hidden: int, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(C, EPS), nn.LayerNorm(C, EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(C, 3 * C), "proj": nn.Linear(C, C)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(C, hidden), "fc2": nn.Linear(hidden, C)})
        self.ls1, self.ls2 = (_Scale(C) if scaled else nn.Identity() for _ in range(2))

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = x_BTC + self.ls1(self._attend(self.norm1(x_BTC)))
        return x_BTC + self.ls2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x_BTC)))))

    def _attend(self, x_BTC: Tensor) -> Tensor:
        qkv_BTJnd = self.attn["qkv"](x_BTC).unflatten(-1, (3, -1, HEAD_DIM))  # J: query, key, value
        q_BnTd, k_BnTd, v_BnTd = (t.transpose(1, 2) for t in qkv_BTJnd.unbind(2))
        y_BnTd = F.scaled_dot_product_attention(q_BnTd, k_BnTd, v_BnTd)
        return self.attn["proj"](y_BnTd.transpose(1, 2).flatten(2))


class _Scale(nn.Module):
    """DINOv2's factor per channel at a branch's end."""

    def __init__(self, C: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(C))

    def forward(self, x_BTC: Tensor) -> Tensor:
        return x_BTC * self.gamma
