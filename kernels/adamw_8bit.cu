// AdamW with moments in eight bits: a thread block for each block of moments, a number to a thread.

#include "adamw.cuh"
#include "adamw_8bit.h"

enum { THREADS = 256, WARPS = THREADS / 32 };

struct Shared {
  float signed_map[256], unsigned_map[256];
  float m[WARPS], v[WARPS];
};

DEVICE float max_of_warp(float x) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, distance));
  return x;
}

DEVICE float max_of(const float (&warps)[WARPS]) {
  float max = warps[0];
#pragma unroll
  for (int warp = 1; warp < WARPS; warp++) max = fmaxf(max, warps[warp]);
  return max;
}

// The code of the entry nearest to x: as many midpoints between neighbours are less than x.
DEVICE u8 nearest(const float (&map)[256], float x) {
  int code = 0;
#pragma unroll
  for (int step = 128; step > 0; step /= 2)
    if (__fdiv_rn(__fadd_rn(map[code + step - 1], map[code + step]), 2) < x) code += step;
  return (u8)code;
}

DEVICE u8 encoded(const float (&map)[256], float x, float absmax, float smallest) {
  if (absmax == 0) return 0;
  return nearest(map, __fmul_rn(x, __fdiv_rn(1, fmaxf(absmax, smallest))));
}

KERNEL(THREADS) adamw_8bit(const __grid_constant__ Adamw8bit p) {
  extern __shared__ __align__(16) u8 memory[];
  Shared &s = *(Shared *)memory;
  float *__restrict__ values = (float *)p.values;
  const float *__restrict__ grads = (const float *)p.grads;
  u8 *__restrict__ ms = (u8 *)p.m;
  u8 *__restrict__ vs = (u8 *)p.v;
  float *__restrict__ m_absmax = (float *)p.m_absmax;
  float *__restrict__ v_absmax = (float *)p.v_absmax;
  s.signed_map[threadIdx.x] = ((const float *)p.signed_map)[threadIdx.x];
  s.unsigned_map[threadIdx.x] = ((const float *)p.unsigned_map)[threadIdx.x];
  __syncthreads();
  const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
  const bool there = i < p.len;
  Number number = {0, 0, 0};
  if (there) {
    const float m = __fmul_rn(s.signed_map[ms[i]], m_absmax[blockIdx.x]);
    const float v = __fmul_rn(s.unsigned_map[vs[i]], v_absmax[blockIdx.x]);
    number = stepped(p, {values[i], m, v}, grads[i]);
    values[i] = number.value;
  }
  const float m = max_of_warp(fabsf(number.m)), v = max_of_warp(fabsf(number.v));
  if (threadIdx.x % 32 == 0) {
    s.m[threadIdx.x / 32] = m;
    s.v[threadIdx.x / 32] = v;
  }
  __syncthreads();
  const float largest_m = max_of(s.m), largest_v = max_of(s.v);
  if (there) {
    ms[i] = encoded(s.signed_map, number.m, largest_m, p.smallest);
    vs[i] = encoded(s.unsigned_map, number.v, largest_v, p.smallest);
  }
  if (threadIdx.x == 0) {
    m_absmax[blockIdx.x] = largest_m;
    v_absmax[blockIdx.x] = largest_v;
  }
}
