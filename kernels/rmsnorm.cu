// RMSNorm forward and backward: a block for each group of a row, a pair of numbers at a time. The factor r
// is computed in both: keeping it would be another buffer for one pass over x.

#include "gpu.cuh"
#include "rmsnorm.h"

enum { THREADS = 256, WARPS = THREADS / 32 };

// The sum over the block, in every thread; warps in their order. `sums` is in use until the next barrier.
DEVICE float sum_of_block(float x, float (&sums)[WARPS]) {
  x = sum_of_warp(x);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < WARPS; warp++) sum += sums[warp];
  return sum;
}

// Where the numbers of this block's group begin, as pairs.
DEVICE u64 start(const Rmsnorm &p, u64 stride) {
  return ((u64)(blockIdx.x / p.groups) * stride + (u64)(blockIdx.x % p.groups) * p.width) / 2;
}

DEVICE float factor_of(const Rmsnorm &p, const u32 *__restrict__ x, float (&sums)[WARPS]) {
  float sum = 0;
  for (u32 i = threadIdx.x; i < p.width / 2; i += THREADS) {
    const float low = bf16_low(x[i]), high = bf16_high(x[i]);
    sum += low * low + high * high;
  }
  return rsqrtf(sum_of_block(sum, sums) / p.width + p.eps);
}

DEVICE void put(const Rmsnorm &p, u32 *out, float low, float high) {
  if (p.add) {
    low += bf16_low(*out);
    high += bf16_high(*out);
  }
  *out = bf16_pair(low, high);
}

KERNEL(THREADS) rmsnorm(const __grid_constant__ Rmsnorm p) {
  extern __shared__ float memory[];
  float(&sums)[WARPS] = *(float(*)[WARPS])memory;
  const u32 *__restrict__ x = (const u32 *)p.x + start(p, p.x_stride);
  const float2 *__restrict__ weight = (const float2 *)p.weight;
  u32 *__restrict__ y = (u32 *)p.out + start(p, p.out_stride);
  const float r = factor_of(p, x, sums);
  for (u32 i = threadIdx.x; i < p.width / 2; i += THREADS) {
    const float2 w = weight[i];
    put(p, y + i, bf16_low(x[i]) * r * (w.x + p.center), bf16_high(x[i]) * r * (w.y + p.center));
  }
}

// dy and dx may be the same memory, so neither is restricted.
KERNEL(THREADS) rmsnorm_backward(const __grid_constant__ Rmsnorm p) {
  extern __shared__ float memory[];
  float(&sums)[2][WARPS] = *(float(*)[2][WARPS])memory;
  const u32 *__restrict__ x = (const u32 *)p.x + start(p, p.x_stride);
  const float2 *__restrict__ weight = (const float2 *)p.weight;
  const u32 *dy = (const u32 *)p.dy + start(p, p.dy_stride);
  u32 *dx = (u32 *)p.out + start(p, p.out_stride);
  const float r = factor_of(p, x, sums[0]);
  float sum = 0;
  for (u32 i = threadIdx.x; i < p.width / 2; i += THREADS) {
    const float2 w = weight[i];
    sum += bf16_low(dy[i]) * (w.x + p.center) * bf16_low(x[i]);
    sum += bf16_high(dy[i]) * (w.y + p.center) * bf16_high(x[i]);
  }
  const float mean = sum_of_block(sum, sums[1]) * r / p.width;
  for (u32 i = threadIdx.x; i < p.width / 2; i += THREADS) {
    const float2 w = weight[i];
    const float low = bf16_low(dy[i]) * (w.x + p.center) - bf16_low(x[i]) * r * mean;
    const float high = bf16_high(dy[i]) * (w.y + p.center) - bf16_high(x[i]) * r * mean;
    put(p, dx + i, r * low, r * high);
  }
}
