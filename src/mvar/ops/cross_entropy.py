"""Cross-entropy straight from the head's input, so that the logits of all tokens never exist at once.

Shapes: N tokens, n tokens of a chunk, C width, V codes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mvar.ops.dispatch import runs_reference
from mvar.ops.numerics import at_least_float32, without_autocast

CHUNK_LOGITS = 2**22  # 16 MB in float32: 1024 tokens of 4096 codes, enough for a quick product


def linear_cross_entropy(
    x_NC: Tensor, weight_VC: Tensor, bias_V: Tensor, target_N: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Each token's cross-entropy in nats, at least float32, and whether its likeliest code is the target, (N,) both.

    Differentiable once in x, W and b; the backward pass recomputes each chunk's logits. `smoothing` is the share of the
    target's probability that is spread evenly over all codes.
    """
    with without_autocast(x_NC):
        if runs_reference():
            return linear_cross_entropy_reference(x_NC, weight_VC, bias_V, target_N, smoothing)
        return _LinearCrossEntropy.apply(x_NC.to(weight_VC.dtype), weight_VC, bias_V, target_N, smoothing)


def linear_cross_entropy_reference(
    x_NC: Tensor, weight_VC: Tensor, bias_V: Tensor, target_N: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The definition of `linear_cross_entropy`, with all logits at once."""
    logits_NV = at_least_float32(F.linear(x_NC.to(weight_VC.dtype), weight_VC, bias_V))
    nll_N = F.cross_entropy(logits_NV, target_N, reduction="none", label_smoothing=smoothing)
    return nll_N, logits_NV.argmax(1) == target_N


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NC: Tensor, weight_VC: Tensor, bias_V: Tensor, target_N: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        losses, norms, correct = [], [], []
        for rows in _chunks(x_NC, weight_VC):
            logits_nV, target_n = _logits(x_NC[rows], weight_VC, bias_V), target_N[rows]
            norm_n = logits_nV.logsumexp(1)
            loss_n = norm_n - (1 - smoothing) * logits_nV.gather(1, target_n[:, None])[:, 0]
            losses.append(loss_n - smoothing * logits_nV.mean(1) if smoothing else loss_n)
            norms.append(norm_n)
            correct.append(logits_nV.argmax(1) == target_n)
        correct_N = torch.cat(correct)
        ctx.save_for_backward(x_NC, weight_VC, bias_V, target_N, torch.cat(norms))
        ctx.smoothing = smoothing
        ctx.mark_non_differentiable(correct_N)
        return torch.cat(losses), correct_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss_N: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x_NC, weight_VC, bias_V, target_N, norm_N = ctx.saved_tensors
        dx_NC = torch.empty_like(x_NC)
        dweight_VC = torch.zeros_like(weight_VC, dtype=dloss_N.dtype)
        dbias_V = torch.zeros_like(bias_V, dtype=dloss_N.dtype)
        with without_autocast(x_NC):
            for rows in _chunks(x_NC, weight_VC):
                # The slope is softmax - target, both times the token's own gradient.
                dlogits_nV = _logits(x_NC[rows], weight_VC, bias_V).sub_(norm_N[rows, None]).exp_()
                if ctx.smoothing:
                    dlogits_nV.sub_(ctx.smoothing / len(weight_VC))
                right_n1 = torch.full_like(norm_N[rows, None], ctx.smoothing - 1)
                dlogits_nV.scatter_add_(1, target_N[rows, None], right_n1).mul_(dloss_N[rows, None])
                dbias_V += dlogits_nV.sum(0)
                torch.mm(dlogits_nV.to(weight_VC.dtype), weight_VC, out=dx_NC[rows])
                dweight_VC.addmm_(dlogits_nV.T, x_NC[rows].to(dlogits_nV.dtype))
        return dx_NC, dweight_VC.to(weight_VC.dtype), dbias_V.to(weight_VC.dtype), None, None


def _chunks(x_NC: Tensor, weight_VC: Tensor) -> list[slice]:
    n = max(1, CHUNK_LOGITS // len(weight_VC))
    return [slice(start, start + n) for start in range(0, len(x_NC), n)]


def _logits(x_nC: Tensor, weight_VC: Tensor, bias_V: Tensor) -> Tensor:
    return at_least_float32(F.linear(x_nC, weight_VC, bias_V))
