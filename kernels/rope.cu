// Rotary position embedding in place: a block for each token, a pair of numbers to a thread.

#include "gpu.cuh"
#include "rope.h"

enum { THREADS = 128 };

KERNEL(THREADS) rope(const __grid_constant__ Rope p) {
  u16 *x = (u16 *)p.x + blockIdx.x * p.x_stride;
  const float *__restrict__ cosines = (const float *)p.tables + blockIdx.x * p.table_stride;
  const float *__restrict__ sines = cosines + p.half;
  for (u32 i = threadIdx.x; i < p.heads * p.half; i += THREADS) {
    const u32 angle = i % p.half;
    u16 *first = x + i / p.half * p.head_dim + angle, *second = first + p.half;
    const float c = cosines[angle], s = p.backward ? -sines[angle] : sines[angle];
    const float a = bf16_low(*first), b = bf16_low(*second);
    const u32 turned = bf16_pair(a * c - b * s, b * c + a * s);
    *first = (u16)turned;
    *second = (u16)(turned >> 16);
  }
}
