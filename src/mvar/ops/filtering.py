"""From logits to the distribution that is sampled: classifier-free guidance, top-k and top-p.

Shapes: any leading dimensions, V codes last; B batch, l tokens of this scale.
Source: VAR (Tian et al. 2024), section 4; guidance after Ho & Salimans 2022, growing with the scale.
"""

import torch
from torch import Tensor


def guide(cond_BlV: Tensor, uncond_BlV: Tensor, t: float) -> Tensor:
    """Push the logits away from the unconditional ones: (1 + t) cond - t uncond."""
    return (1 + t) * cond_BlV - t * uncond_BlV


def top_k(logits_BlV: Tensor, k: int | None) -> Tensor:
    """Keep the k largest logits and what ties with the k-th; the others become -inf. 0 or None keeps all."""
    if not k or k >= logits_BlV.shape[-1]:
        return logits_BlV
    kth_Bl1 = logits_BlV.topk(k, sorted=False).values.amin(-1, keepdim=True)
    return logits_BlV.masked_fill(logits_BlV < kth_Bl1, -torch.inf)


def top_p(logits_BlV: Tensor, p: float) -> Tensor:
    """Drop the least likely logits whose ascending cumulative probability is <= 1 - p, never the largest.

    1 keeps all. Logits that are -inf already (by top-k) stay so and are not sorted again.
    """
    if p >= 1:
        return logits_BlV
    candidates = int((logits_BlV > -torch.inf).sum(-1).amax())
    values_Blc, codes_Blc = logits_BlV.topk(candidates)  # descending
    ascending_Blc = values_Blc.softmax(-1).flip(-1).cumsum(-1)
    drop_Blc = (ascending_Blc <= 1 - p).flip(-1)
    drop_Blc[..., 0] = False
    kept_Blc = values_Blc.masked_fill(drop_Blc, -torch.inf)
    return torch.full_like(logits_BlV, -torch.inf).scatter(-1, codes_Blc, kept_Blc)
