"""Multi-head attention inside each scale, or also over scales before it with cached keys and values.

Shapes: B batch, l tokens of this call, T tokens so far, C width, H heads, d head width.
Source: M-VAR (Ren et al. 2024), section 3.2; VAR (Tian et al. 2024), section 3.2 and its QK normalisation; HMAR
(Kumbong et al. 2025) for the scale before.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mvar.nn.linear import Linear
from mvar.ops.attention import Reach, scale_attention, split_heads


class KeyValues(NamedTuple):
    """(Normalised) keys, and values, of all T tokens so far for "global", of the last scale's for "recent"."""

    keys_BHTd: Tensor
    values_BHTd: Tensor


class Attention(nn.Module):
    """Attention with one qkv matrix, and biases on queries and values only.

    With `qk_norm`, queries and keys have unit length, and each head a learned temperature.
    """

    def __init__(self, width: int, heads: int, *, reach: Reach, qk_norm: bool) -> None:
        super().__init__()
        self.heads, self.reach = heads, reach
        self.qkv = Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.log_scale = nn.Parameter(torch.zeros(1, heads, 1, 1)) if qk_norm else None
        self.softmax_scale = 1.0 if qk_norm else 0.25 / math.sqrt(width // heads)
        self.proj = Linear(width, width)

    def forward(
        self, x_BlC: Tensor, areas: tuple[int, ...], cache: KeyValues | None = None
    ) -> tuple[Tensor, KeyValues | None]:
        """Tokens of consecutive scales, of `areas` tokens each, and the cache of the scales before -> (B, l, C) and the
        cache after these tokens (None for "intra").
        """
        bias_3C = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv_BlJHd = self.qkv(x_BlC, bias_3C).unflatten(-1, (3, self.heads, -1))  # J: query, key, value
        q_BHld, k_BHld, v_BHld = split_heads(qkv_BlJHd, self.log_scale)

        if cache is not None:
            k_BHld = torch.cat((cache.keys_BHTd.to(k_BHld.dtype), k_BHld), dim=2)
            v_BHld = torch.cat((cache.values_BHTd.to(v_BHld.dtype), v_BHld), dim=2)
        y_BHld = scale_attention(q_BHld, k_BHld, v_BHld, areas, self.softmax_scale, self.reach)
        if self.reach == "global":
            cache = KeyValues(k_BHld, v_BHld)
        elif self.reach == "recent":  # copies, as views would keep all tokens alive
            cache = KeyValues(*(t_BHld[:, :, -areas[-1] :].clone() for t_BHld in (k_BHld, v_BHld)))
        return self.proj(y_BHld.transpose(1, 2).flatten(2)), cache
