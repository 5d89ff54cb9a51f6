"""A plain Triton kernel that decodes NF4 weights with double-quantized scales: an anchor for our own.

Two codes a byte, the first in the high half; a scale for 64 weights, as a code of eight bits; a scale of those for 256.
"""

import torch
import triton
import triton.language as tl

# Bytes of codes that one program decodes.
BYTES = 1024


@triton.jit
def kernel(codes, absmax, nested_absmax, levels, map_, out, OFFSET: tl.constexpr, BYTES: tl.constexpr):
    first = tl.program_id(0) * BYTES
    place = first + tl.arange(0, BYTES)
    pair = tl.load(codes + place).to(tl.int32)
    scale = tl.load(map_ + tl.load(absmax + place // 32).to(tl.int32))
    scale = scale * tl.load(nested_absmax + place // (32 * 256)) + OFFSET
    weights = tl.interleave(tl.load(levels + (pair >> 4)) * scale, tl.load(levels + (pair & 15)) * scale)
    tl.store(out + 2 * first + tl.arange(0, 2 * BYTES), weights.to(tl.bfloat16))


def buffers(weights):
    """Random codes; the levels only matter as a table."""
    codes = torch.randint(0, 256, (weights // 2,), device="cuda", dtype=torch.uint8)
    absmax = torch.randint(0, 256, (weights // 64,), device="cuda", dtype=torch.uint8)
    nested_absmax = torch.rand(weights // 64 // 256, device="cuda")
    levels, map_ = torch.linspace(-1, 1, 16, device="cuda"), torch.linspace(-1, 1, 256, device="cuda")
    return codes, absmax, nested_absmax, levels, map_, torch.empty(weights, device="cuda", dtype=torch.bfloat16)


def decode(codes, absmax, nested_absmax, levels, map_, out):
    kernel[(codes.numel() // BYTES,)](codes, absmax, nested_absmax, levels, map_, out, OFFSET=0.02, BYTES=BYTES)
