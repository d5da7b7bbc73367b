"""Measurements on token maps: how many codes the tokenizer uses, and how well the generator predicts them.

Shapes: N images, L tokens, P tokens of a scale.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mvar.generator.network import Generator
from mvar.sampling.likelihood import token_log_probs
from mvar.tokenizer.network import Tokenizer
from mvar.tokenizer.quantizer import code_usage


class Usage(NamedTuple):
    """How a set of tokens uses the codebook."""

    used: int  # codes that occur at least once
    perplexity: float  # exp(entropy) of the codes' shares: how many codes, equally used, would be as varied


def usage(tokens: Tensor, vocab_size: int) -> Usage:
    """Usage of the codebook by tokens of any shape; raises ValueError for none, or one outside the codebook."""
    if not tokens.numel() or tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(f"tokens {tuple(tokens.shape)}: give at least one, all from 0 to {vocab_size - 1}")
    return Usage(*code_usage(torch.bincount(tokens.flatten(), minlength=vocab_size)))


@torch.inference_mode()
def bits_per_token(tokenizer: Tokenizer, generator: Generator, tokens: Sequence[Tensor], labels_N: Tensor) -> Tensor:
    """Teacher-forced -log2 p(token | tokens of coarser scales, class), averaged over the images, per position (L,).

    Args:
        tokenizer, generator: of one model, in eval mode.
        tokens: token maps, one (N, P) for each scale.
        labels_N: class indices.
    """
    return -token_log_probs(tokenizer, generator, tokens, labels_N).mean(0) / math.log(2)
