// Dropout by position: nothing is kept for the way back. A thread draws the four words of a counter and
// decides on up to four numbers, which may begin in one row and end in the next.

#include "gpu.cuh"
#include "dropout.h"

enum { THREADS = 256 };

// Philox4x32-10 (Salmon et al., 2011).
DEVICE void philox(u32 (&c)[4], u32 key0, u32 key1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const u32 high0 = __umulhi(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
    const u32 high2 = __umulhi(0xCD9E8D57u, c[2]), low2 = 0xCD9E8D57u * c[2];
    c[0] = high2 ^ c[1] ^ key0;
    c[1] = low2;
    c[2] = high0 ^ c[3] ^ key1;
    c[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

KERNEL(THREADS) dropout(const __grid_constant__ Dropout p) {
  const u16 *__restrict__ x = (const u16 *)p.x;
  u16 *__restrict__ out = (u16 *)p.out;
  const u64 counter = (u64)blockIdx.x * THREADS + threadIdx.x;
  u32 words[4] = {(u32)counter, (u32)(counter >> 32), (u32)p.stream, (u32)(p.stream >> 32)};
  philox(words, (u32)p.seed, (u32)(p.seed >> 32));
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const u64 element = 4 * counter + i;
    if (element >= p.rows * p.cols) return;
    const u64 row = element / p.cols, col = element % p.cols, to = row * p.out_stride + col;
    // Rounded one by one, as the CPU does it.
    float value = __fmul_rn(bf16_low(x[row * p.x_stride + col]), words[i] < p.threshold ? 0 : p.scale);
    if (p.add) value = __fadd_rn(value, bf16_low(out[to]));
    out[to] = (u16)bf16_pair(value, 0);
  }
}
