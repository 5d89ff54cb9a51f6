// A matrix from one element to another: blocks in x have a row each, those in y share its columns.

#include "gpu.cuh"
#include "cast.h"

enum { THREADS = 256 };

DEVICE float get(const Cast &p, u64 at) {
  return p.from_wide ? ((const float *)p.from)[at] : bf16_low(((const u16 *)p.from)[at]);
}

KERNEL(THREADS) cast(const __grid_constant__ Cast p) {
  for (u64 col = (u64)blockIdx.y * THREADS + threadIdx.x; col < p.cols; col += gridDim.y * THREADS) {
    const float value = get(p, blockIdx.x * p.from_stride + col);
    const u64 to = blockIdx.x * p.to_stride + col;
    if (p.to_wide)
      ((float *)p.to)[to] = value;
    else
      ((u16 *)p.to)[to] = (u16)bf16_pair(value, 0);
  }
}
