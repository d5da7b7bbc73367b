"""The noise of `mvar.ops.noise` on the device: the same bits, computed only where there are candidates."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvar.ops.gpu.launch import tiles

BLOCK = 256
WORDS = tl.constexpr(4)  # of 64 bits, that one round of Philox gives


@triton.jit
def uniform_at(
    at_ptr, out_ptr, index_ptr, seed_ptr, stream, tokens, V, count, per_token, BLOCK: tl.constexpr
):  # fmt: skip
    """Philox4x64-10 with key (seed, index), counter (block + 1, 0, stream, 0); two numbers of 32 bits a word."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = i // per_token
    place = row % tokens * V + tl.load(at_ptr + i, mask=i < count, other=0)
    word = place // 2
    zero = word.to(tl.uint64) * 0
    c0, c1, c2, c3 = (word // WORDS + 1).to(tl.uint64), zero, zero + stream.to(tl.uint64), zero
    k0 = zero + tl.load(seed_ptr).to(tl.uint64)
    k1 = tl.load(index_ptr + row // tokens, mask=i < count, other=0).to(tl.uint64)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(zero + 0xD2E7470EE14C6C93, c0), c0 * 0xD2E7470EE14C6C93
        high2, low2 = tl.umulhi(zero + 0xCA5A826395121157, c2), c2 * 0xCA5A826395121157
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B97F4A7C15
        k1 += 0xBB67AE8584CAA73B
    lane = word % WORDS
    bits = tl.where(lane == 0, c0, tl.where(lane == 1, c1, tl.where(lane == 2, c2, c3)))
    half = tl.where(place % 2 == 0, bits & 0xFFFFFFFF, bits >> 32).to(tl.uint32)
    tl.store(out_ptr + i, tl.minimum((half.to(tl.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24), mask=i < count)


def uniform(seed: int, index: Sequence[int], stream: int, tokens: int, V: int, at: Tensor) -> Tensor:
    """`mvar.ops.noise.uniform` of shape (tokens, V) for each image, at the places `at` (B, tokens, n) along V."""
    keys = torch.tensor([seed, *index], dtype=torch.uint64).view(torch.int64).to(at.device, non_blocking=True)
    out, count = torch.empty(at.shape, dtype=torch.float32, device=at.device), at.numel()
    uniform_at[(tiles(count, BLOCK),)](
        at.contiguous(), out, keys[1:], keys, stream, tokens, V, count, at.shape[-1], BLOCK=BLOCK
    )
    return out
