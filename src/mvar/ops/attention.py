"""Attention over token maps without a mask as large as the sequence.

Shapes: B batch, H heads, l tokens of this call, T tokens so far, d head width, q queries, t keys, J: query, key, value.
Source: section 3.2 of M-VAR (Ren et al. 2024), inside each scale, and of VAR (Tian et al. 2024), block-causal; HMAR
(Kumbong et al. 2025) for the scale before.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mvar.ops import native
from mvar.ops.dispatch import runs_kernels, runs_native, runs_reference
from mvar.ops.numerics import at_least_float32

Reach = Literal["intra", "recent", "global"]

LARGEST_LOG_SCALE = math.log(100)
# On a CPU, consecutive scales of at most this many tokens share a call: fewer calls win over fewer products. On a GPU
# each scale has its own, as the fastest kernels take no mask, and making one would wait for the GPU.
GROUP_TOKENS = 96
# With a gradient, up to this many keys go through plain products: on a CPU, the fused kernel takes twice as long.
PLAIN_KEYS = 768


def split_heads(qkv_BlJHd: Tensor, log_scale: Tensor | None) -> Sequence[Tensor]:
    """Queries, keys and values, (B, H, l, d) each.

    With `log_scale`, H numbers, queries and keys get unit length, and queries are multiplied by each head's
    exp(min(log_scale, log 100)).
    """
    if log_scale is None:
        return qkv_BlJHd.permute(2, 0, 3, 1, 4).unbind()
    if runs_kernels(qkv_BlJHd):
        from mvar.ops.gpu.norms import heads

        return heads(qkv_BlJHd, log_scale.flatten()).unbind()
    temperature_H = at_least_float32(log_scale).flatten().clamp(max=LARGEST_LOG_SCALE).exp()
    if qkv_BlJHd.shape[-1] == native.HEAD_DIM and runs_native(qkv_BlJHd):
        return native.heads(qkv_BlJHd, temperature_H).unbind()
    qk_BlJHd = at_least_float32(qkv_BlJHd[:, :, :2])
    factor_JH1 = torch.stack((temperature_H, torch.ones_like(temperature_H)))[..., None]
    length_BlJH1 = torch.linalg.vector_norm(qk_BlJHd, dim=-1, keepdim=True).clamp_min(1e-12)
    q_BlHd, k_BlHd = (qk_BlJHd * (factor_JH1 / length_BlJH1)).to(qkv_BlJHd.dtype).unbind(2)
    return [t_BlHd.transpose(1, 2) for t_BlHd in (q_BlHd, k_BlHd, qkv_BlJHd[:, :, 2])]


def scale_attention(
    q_BHld: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, areas: tuple[int, ...], softmax_scale: float, reach: Reach
) -> Tensor:
    """Attention of every token to all tokens of its own scale ("intra"), and of the one before it ("recent") or of all
    before it ("global").

    Args:
        q_BHld: l = sum(areas) tokens of consecutive scales, the last of the T so far.
        k_BHTd, v_BHTd: the same l tokens, after those of the scale before this call, if any ("recent"), or after those
            of all earlier calls ("global").
    """
    if runs_reference():
        return scale_attention_reference(q_BHld, k_BHTd, v_BHTd, areas, softmax_scale, reach)
    groups = _groups(areas, GROUP_TOKENS if q_BHld.device.type == "cpu" else 0)
    sizes = [sum(group) for group in groups]
    if reach == "intra":
        seen = list(zip(k_BHTd.split(sizes, dim=2), v_BHTd.split(sizes, dim=2), strict=True))
    else:
        carried = k_BHTd.shape[2] - q_BHld.shape[2]
        before = (carried, *(group[-1] for group in groups[:-1]))  # tokens of the scale before each group
        seen = []
        for (start, end), area in zip(pairwise(accumulate(sizes, initial=carried)), before, strict=True):
            first = start - area if reach == "recent" else 0
            seen.append((k_BHTd[:, :, first:end], v_BHTd[:, :, first:end]))
    outs = []
    for q, (k, v), group in zip(q_BHld.split(sizes, dim=2), seen, groups, strict=True):
        mask = _mask(group, k.shape[2], reach, q.device) if len(group) > 1 else None
        outs.append(_attend(q, k, v, mask, softmax_scale))
    return torch.cat(outs, dim=2) if len(outs) > 1 else outs[0]


def scale_attention_reference(
    q_BHld: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, areas: tuple[int, ...], softmax_scale: float, reach: Reach
) -> Tensor:
    """The definition of `scale_attention`, one dense masked softmax."""
    mask_lT = _mask(areas, k_BHTd.shape[2], reach, q_BHld.device)
    scores_BHlT = softmax_scale * q_BHld @ k_BHTd.mT
    return scores_BHlT.masked_fill(~mask_lT, float("-inf")).softmax(-1) @ v_BHTd


def _groups(areas: tuple[int, ...], most: int) -> list[tuple[int, ...]]:
    """Consecutive scales of at most this many tokens together; a larger scale stands alone."""
    groups: list[tuple[int, ...]] = []
    for area in areas:
        if groups and sum(groups[-1]) + area <= most:
            groups[-1] = (*groups[-1], area)
        else:
            groups.append((area,))
    return groups


def _mask(areas: tuple[int, ...], keys: int, reach: Reach, device: torch.device) -> Tensor:
    """True where a query of these scales sees one of the keys, of which the last are of these scales."""
    level_l = torch.tensor([k for k, area in enumerate(areas) for _ in range(area)], device=device)
    if reach == "intra":
        return level_l[:, None] == level_l
    behind_lt = level_l[:, None] - F.pad(level_l, (keys - len(level_l), 0), value=-1)
    return behind_lt >= 0 if reach == "global" else (behind_lt >= 0) & (behind_lt <= 1)


def _attend(q_BHqd: Tensor, k_BHtd: Tensor, v_BHtd: Tensor, mask_qt: Tensor | None, softmax_scale: float) -> Tensor:
    """Softmax attention; mask_qt is true where a query may look."""
    if q_BHqd.device.type == "cpu" and k_BHtd.shape[2] <= (PLAIN_KEYS if q_BHqd.requires_grad else GROUP_TOKENS):
        scores_BHqt = (q_BHqd * softmax_scale if softmax_scale != 1 else q_BHqd) @ k_BHtd.mT
        if mask_qt is not None:
            scores_BHqt = scores_BHqt.masked_fill(~mask_qt, float("-inf"))
        return scores_BHqt.softmax(-1) @ v_BHtd
    return F.scaled_dot_product_attention(q_BHqd, k_BHtd, v_BHtd, attn_mask=mask_qt, scale=softmax_scale)
