// Four-bit codes to bf16, a block of 64 values to a thread.

#include "dequantize.h"
#include "four_bit.cuh"

enum { THREADS = 128 };

KERNEL(THREADS) dequantize(const __grid_constant__ Dequantize p) {
  const u64 block = (u64)blockIdx.x * THREADS + threadIdx.x;
  if (block >= p.values / BLOCK) return;
  const uint4 *__restrict__ codes = (const uint4 *)p.codes + block * (BLOCK / 32);
  uint4 *__restrict__ out = (uint4 *)p.out + block * (BLOCK / 8);
  const Table table = scaled(p.book, scale_of(p, block));
#pragma unroll
  for (int half = 0; half < BLOCK / 32; half++) {
    const uint4 packed = codes[half];
    out[half * 4] = decode(table, packed.x);
    out[half * 4 + 1] = decode(table, packed.y);
    out[half * 4 + 2] = decode(table, packed.z);
    out[half * 4 + 3] = decode(table, packed.w);
  }
}
