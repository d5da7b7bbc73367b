"""The noise of `mvar.ops.noise` on the device: the same bits, computed only where there are candidates."""

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from mvar.machine import send
from mvar.ops.gpu.launch import on_its_device, tiles
from mvar.ops.noise import key_bits

BLOCK = 256
WORDS = tl.constexpr(4)  # of 64 bits, that one round of Philox gives


@triton.jit(do_not_specialize=["stream", "tokens", "V", "count", "per_token"])
def gumbel_at(
    at_ptr, out_ptr, index_ptr, seed_ptr, stream, tokens, V, count, per_token,
    HAS_AT: tl.constexpr, UNIFORM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Philox4x64-10 with key (seed, index), counter (block + 1, 0, stream, 0); two numbers of 32 bits a word."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = i // per_token
    code = tl.load(at_ptr + i, mask=i < count, other=0) if HAS_AT else i % per_token
    place = row % tokens * V + code
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
    u = tl.minimum((half.to(tl.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    if not UNIFORM:
        # -log(1 - u), by its series where 1 - u would lose digits: these are the values that decide.
        series = u * (1 + u * (1 / 2 + u * (1 / 3 + u * (1 / 4 + u * (1 / 5 + u * (1 / 6))))))
        u = -tl.log(tl.where(u < 0.02, series, -tl.log(1 - u)))
    tl.store(out_ptr + i, u, mask=i < count)


@functools.lru_cache(maxsize=64)
def _sent(seed: int, index: tuple[int, ...], device: torch.device) -> Tensor:
    """The keys on a device, sent once for all scales."""
    return send(key_bits(seed, index), device)


@torch.library.custom_op("mvar::gumbel", mutates_args=())
@on_its_device
def gumbel_operator(keys: Tensor, at_Bln: Tensor | None, stream: int, l: int, V: int, uniform: bool) -> Tensor:
    """float32 (B, l, n): noise at the places `at` along V codes, or at all of them."""
    B, n = len(keys) - 1, V if at_Bln is None else at_Bln.shape[-1]
    out_Bln = torch.empty(B, l, n, dtype=torch.float32, device=keys.device)
    gumbel_at[(tiles(B * l * n, BLOCK),)](
        at_Bln, out_Bln, keys[1:], keys, stream, l, V, B * l * n, n,
        HAS_AT=at_Bln is not None, UNIFORM=uniform, BLOCK=BLOCK,
    )  # fmt: skip
    return out_Bln


@gumbel_operator.register_fake
def _(keys, at_Bln, stream, l, V, uniform):
    n = V if at_Bln is None else at_Bln.shape[-1]
    return torch.empty(len(keys) - 1, l, n, dtype=torch.float32, device=keys.device)


def gumbel(
    seed: int, index: Sequence[int], stream: int, shape: Sequence[int], at: Tensor | None, device: torch.device
) -> Tensor:
    """As `mvar.ops.noise.gumbel`, of shape (l, V) for each image, on a device."""
    return gumbel_of(_sent(seed, tuple(index), device), stream, shape, at)


def gumbel_of(keys: Tensor, stream: int, shape: Sequence[int], at: Tensor | None) -> Tensor:
    """As `gumbel`, of `keys` that lie on the device."""
    return gumbel_operator(keys, None if at is None else at.contiguous(), stream, *shape, False)
