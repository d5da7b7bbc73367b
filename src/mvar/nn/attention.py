"""Multi-head attention inside each scale, or over all scales so far with cached keys and values.

Shapes: B batch, l tokens of this call, T tokens so far, C width, H heads, d head width.
Source: M-VAR (Ren et al. 2024), section 3.2; VAR (Tian et al. 2024), section 3.2 and its QK normalisation.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mvar.nn.linear import Linear
from mvar.ops import native
from mvar.ops.attention import block_causal_attention, intra_scale_attention
from mvar.ops.precision import at_least_float32

LARGEST_LOG_SCALE = math.log(100)


class KeyValues(NamedTuple):
    """What global attention remembers: the (normalised) keys and the values of all tokens so far."""

    keys_BHTd: Tensor
    values_BHTd: Tensor


class Attention(nn.Module):
    """Attention with one qkv matrix and biases on queries and values only."""

    def __init__(self, width: int, heads: int, *, reach: Literal["intra", "global"], qk_norm: bool) -> None:
        """Args:
        width: C.
        heads: H, divides C.
        reach: "intra" (inside each scale) or "global" (this and all earlier scales).
        qk_norm: unit-length queries and keys with a learned temperature for each head.
        """
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
        """Args:
            x_BlC: tokens of consecutive scales.
            areas: tokens of each of these scales.
            cache: global attention's keys and values of the scales before, None at the start.

        Returns:
            (B, l, C) and the cache with this call's tokens (None for "intra").
        """
        bias_3C = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv_BlJHd = self.qkv(x_BlC, bias_3C).unflatten(-1, (3, self.heads, -1))  # J: query, key, value
        q_BHld, k_BHld, v_BHld = self._split(qkv_BlJHd)

        if self.reach == "intra":
            y_BHld = intra_scale_attention(q_BHld, k_BHld, v_BHld, areas, self.softmax_scale)
        else:
            if cache is not None:
                k_BHld = torch.cat((cache.keys_BHTd.to(k_BHld.dtype), k_BHld), dim=2)
                v_BHld = torch.cat((cache.values_BHTd.to(v_BHld.dtype), v_BHld), dim=2)
            cache = KeyValues(k_BHld, v_BHld)
            y_BHld = block_causal_attention(q_BHld, *cache, areas, self.softmax_scale)
        return self.proj(y_BHld.transpose(1, 2).flatten(2)), cache

    def _split(self, qkv_BlJHd: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, (B, H, l, d) each; with a temperature the first two of unit length, times it."""
        if self.log_scale is None:
            return qkv_BlJHd.permute(2, 0, 3, 1, 4).unbind()
        temperature_H = at_least_float32(self.log_scale).flatten().clamp(max=LARGEST_LOG_SCALE).exp()
        if qkv_BlJHd.shape[-1] == native.HEAD_DIM and native.takes(qkv_BlJHd):
            return native.heads(qkv_BlJHd, temperature_H).unbind()
        qk_BlJHd, v_BlHd = qkv_BlJHd[:, :, :2], qkv_BlJHd[:, :, 2]
        qk_BlJHd = _normalise(qk_BlJHd, temperature_H).to(v_BlHd.dtype)
        return [t_BlHd.transpose(1, 2) for t_BlHd in (*qk_BlJHd.unbind(2), v_BlHd)]


def _normalise(qk_BlJHd: Tensor, temperature_H: Tensor) -> Tensor:
    """Unit length, queries times the head's temperature, in float32 or float64."""
    qk_BlJHd = at_least_float32(qk_BlJHd)
    factor_JH1 = torch.stack((temperature_H, torch.ones_like(temperature_H)))[..., None]
    length_BlJH1 = torch.linalg.vector_norm(qk_BlJHd, dim=-1, keepdim=True).clamp_min(1e-12)
    return qk_BlJHd * (factor_JH1 / length_BlJH1)
