"""From logits to the distribution that is sampled: classifier-free guidance, top-k and top-p.

Shapes: B batch, l tokens of this scale, V codes, c candidates out of V.
Source: VAR (Tian et al. 2024), section 4; guidance after Ho & Salimans 2022.
"""

import torch
from torch import Tensor

TIES = 32  # with the k-th logit, that are found on a GPU, which is then never waited for; on a CPU all are found


def guide(cond_BlV: Tensor, uncond_BlV: Tensor, t: float) -> Tensor:
    """Push the logits away from the unconditional ones: (1 + t) cond - t uncond."""
    return (1 + t) * cond_BlV - t * uncond_BlV


def candidates(logits_BlV: Tensor, k: int, p: float) -> tuple[Tensor, Tensor | None]:
    """The codes that top-k, then top-p keep, and their logits.

    Top-k keeps the k largest logits and ties with the k-th (on a GPU at most TIES of them); 0 keeps all. Top-p drops
    the least likely of these whose ascending cumulative probability is <= 1 - p, never the largest; 1 keeps all.

    Returns logits (B, l, c) in descending order, -inf if dropped, and their codes; if both keep all, logits_BlV, None.
    """
    V = logits_BlV.shape[-1]
    every = k == 0 or k >= V
    if every and p >= 1:
        return logits_BlV, None
    most = V if every else k
    on_cpu = logits_BlV.device.type == "cpu"
    values_Blc, codes_Blc = logits_BlV.topk(most if on_cpu else min(most + TIES, V))
    if not every:
        kth_Bl1 = values_Blc[..., k - 1 : k]
        if on_cpu and (most := int((logits_BlV >= kth_Bl1).sum(-1).amax())) > k:
            values_Blc, codes_Blc = logits_BlV.topk(most)
        if values_Blc.shape[-1] > k:
            values_Blc = values_Blc.masked_fill(values_Blc < kth_Bl1, -torch.inf)
    if p < 1:
        ascending_Blc = values_Blc.softmax(-1).flip(-1).cumsum(-1)
        drop_Blc = (ascending_Blc <= 1 - p).flip(-1)
        drop_Blc[..., 0] = False
        values_Blc = values_Blc.masked_fill(drop_Blc, -torch.inf)
    return values_Blc, codes_Blc


def spread_out(values_Blc: Tensor, codes_Blc: Tensor | None, V: int, elsewhere: float) -> Tensor:
    """Scatter the candidates' numbers to all V codes, (B, l, V), with `elsewhere` for the others."""
    if codes_Blc is None:
        return values_Blc
    return values_Blc.new_full((*values_Blc.shape[:-1], V), elsewhere).scatter(-1, codes_Blc, values_Blc)
