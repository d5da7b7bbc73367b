"""Attention over token maps without a mask as large as the sequence.

Shapes: B batch, H heads, l tokens of this call, T tokens so far, d head width, q queries, t keys.
Source: M-VAR (Ren et al. 2024), section 3.2 (inside each scale); VAR (Tian et al. 2024), section 3.2 (block-causal).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Consecutive scales of at most this many tokens share one call with a small mask: measured on a CPU, fewer calls
# win over fewer products up to about here.
GROUP_TOKENS = 96
# Up to so many keys a query is differentiated through plain products, which store their weights: forward and backward,
# a CPU's fused kernel takes about twice as long.
PLAIN_KEYS = 768


def intra_scale_attention(
    q_BHld: Tensor, k_BHld: Tensor, v_BHld: Tensor, areas: tuple[int, ...], softmax_scale: float
) -> Tensor:
    """Every token attends to all tokens of its own scale and to no other.

    Args:
        q_BHld, k_BHld, v_BHld: l = sum(areas) tokens of consecutive scales.
        areas: tokens of each scale.
        softmax_scale: factor of the scores.

    Returns:
        (B, H, l, d).
    """
    groups = _groups(areas)
    sizes = [sum(group) for group in groups]
    parts = zip(*(t.split(sizes, dim=2) for t in (q_BHld, k_BHld, v_BHld)), groups, strict=True)
    outs = []
    for q, k, v, group in parts:
        level = _levels(group, q.device)
        mask = level[:, None] == level if len(group) > 1 else None
        outs.append(_attend(q, k, v, mask, softmax_scale))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)


def block_causal_attention(
    q_BHld: Tensor, k_BHTd: Tensor, v_BHTd: Tensor, areas: tuple[int, ...], softmax_scale: float
) -> Tensor:
    """Every token attends to all tokens of its own scale and of the scales before it.

    Args:
        q_BHld: l = sum(areas) tokens of consecutive scales, the last of the T so far.
        k_BHTd, v_BHTd: all T tokens so far, those of earlier calls first.
        areas: tokens of each scale of this call.
        softmax_scale: factor of the scores.

    Returns:
        (B, H, l, d).
    """
    outs, end = [], k_BHTd.shape[2] - q_BHld.shape[2]
    groups = _groups(areas)
    for q, group in zip(q_BHld.split([sum(group) for group in groups], dim=2), groups, strict=True):
        mask = None
        if len(group) > 1:
            level = _levels(group, q.device)
            mask = F.pad(level[:, None] >= level, (end, 0), value=True)
        end += sum(group)
        outs.append(_attend(q, k_BHTd[:, :, :end], v_BHTd[:, :, :end], mask, softmax_scale))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=2)


def _groups(areas: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Consecutive scales of at most GROUP_TOKENS tokens together; a larger scale stands alone."""
    groups: list[tuple[int, ...]] = []
    for area in areas:
        if groups and sum(groups[-1]) + area <= GROUP_TOKENS:
            groups[-1] = (*groups[-1], area)
        else:
            groups.append((area,))
    return groups


def _levels(areas: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([k for k, area in enumerate(areas) for _ in range(area)], device=device)


def _attend(q_BHqd: Tensor, k_BHtd: Tensor, v_BHtd: Tensor, mask_qt: Tensor | None, softmax_scale: float) -> Tensor:
    """Softmax attention; mask_qt is true where a query may look."""
    if q_BHqd.device.type == "cpu" and k_BHtd.shape[2] <= (PLAIN_KEYS if q_BHqd.requires_grad else GROUP_TOKENS):
        scores_BHqt = (q_BHqd * softmax_scale if softmax_scale != 1 else q_BHqd) @ k_BHtd.mT
        if mask_qt is not None:
            scores_BHqt = scores_BHqt.masked_fill(~mask_qt, float("-inf"))
        return scores_BHqt.softmax(-1) @ v_BHtd
    return F.scaled_dot_product_attention(q_BHqd, k_BHtd, v_BHtd, attn_mask=mask_qt, scale=softmax_scale)
