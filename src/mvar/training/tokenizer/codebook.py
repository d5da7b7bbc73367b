"""Keeping the codebook alive: initialisation from data, revival of dead codes, and usage per scale.

Shapes: B batch, Z latent channels, V codes, K scales; P tokens of a scale, N vectors.

A quantiser trained naively collapses first at the coarse scales, whose few tokens come near few codes. Initialisation
and revival therefore give every scale the same number of codes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mvar.tokenizer.quantizer import MultiScaleQuantizer, code_usage


@torch.no_grad()
def start_from_data(quantizer: MultiScaleQuantizer, f_BZHW: Tensor, generator: torch.Generator) -> None:
    """Replace the codebook by residuals that the scales meet on these latents, V / K from each.

    Scale by scale, since a scale's residual depends on the codes of the scales before it.
    """
    V, K = len(quantizer.codebook), len(quantizer.schedule)
    edges = [-(-V * k // K) for k in range(K + 1)]  # rounded up: the first scale has a code even where V < K
    f_hat_BZHW = torch.zeros_like(f_BZHW)
    for k in range(K):
        rest_BZhw = quantizer.input_of(f_BZHW - f_hat_BZHW, k)
        quantizer.codebook[edges[k] : edges[k + 1]] = _random_vectors(rest_BZhw, edges[k + 1] - edges[k], generator)
        quantizer.codebook[edges[k + 1] :] = quantizer.codebook[0]  # codes of later scales must not be chosen yet
        tokens_BP = quantizer.nearest(rest_BZhw, k)
        f_hat_BZHW = quantizer.add(f_hat_BZHW, quantizer.lookup(tokens_BP, k), k)


@torch.no_grad()
def revive(
    quantizer: MultiScaleQuantizer, counts_KV: Tensor, residuals: Sequence[Tensor], dead_below: float,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Move dead codes onto residuals of this batch, the same number to each scale; returns their indices.

    A code's usage is its fraction of a scale's tokens, averaged over scales; it is dead below `dead_below` / V.

    `counts_KV` is how often each scale used each code since the last revival, `residuals` what each scale quantised,
    (B, Z, h_k, w_k); B may differ, and a scale with B = 0 gets no code.
    """
    V, K = len(quantizer.codebook), len(residuals)
    usage_V = (counts_KV / counts_KV.sum(1, keepdim=True).clamp(min=1)).mean(0)
    dead_N = (usage_V < dead_below / V).nonzero().flatten()
    dead_N = dead_N[torch.randperm(len(dead_N), generator=generator).to(dead_N.device)]
    moved = [dead_N[:0]]
    for codes, residual_BZhw in zip(dead_N.tensor_split(K), residuals, strict=True):
        if len(codes) and len(residual_BZhw):
            quantizer.codebook[codes] = _random_vectors(residual_BZhw, len(codes), generator)
            moved.append(codes)
    return torch.cat(moved)


def _random_vectors(map_BZhw: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n random vectors (n, Z) of a map, with slight noise, so that a vector chosen twice gives two codes."""
    vectors_NZ = map_BZhw.transpose(0, 1).flatten(1).T.float()
    chosen = torch.randint(len(vectors_NZ), (n,), generator=generator).to(vectors_NZ.device)
    noise = torch.randn(n, vectors_NZ.shape[1], generator=generator).to(vectors_NZ.device)
    return vectors_NZ[chosen] + 0.01 * vectors_NZ.std(correction=0) * noise


def usage(counts_KV: Tensor) -> tuple[list[float], list[float]]:
    """For each scale: the fraction of codes used at least once, and the perplexity of their usage."""
    used, perplexity = zip(*map(code_usage, counts_KV.cpu()), strict=True)
    return [count / counts_KV.shape[1] for count in used], list(perplexity)


def count_tokens(tokens: Sequence[Tensor], vocab_size: int, scales_B: Tensor | None = None) -> Tensor:
    """How often each scale uses each code, (K, V); of each image's first `scales_B` scales only, by default all."""
    counts_KV = tokens[0].new_zeros(len(tokens), vocab_size)
    for k, tokens_BP in enumerate(tokens):  # not bincount, which waits for a GPU
        counted_BP = torch.ones_like(tokens_BP)
        if scales_B is not None:
            counted_BP *= (k < scales_B)[:, None]
        counts_KV[k].scatter_add_(0, tokens_BP.flatten(), counted_BP.flatten())
    return counts_KV
