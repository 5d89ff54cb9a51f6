// Cross-entropy of rows of logits and its gradient in their place: a block for each row, which it reads
// twice: once for the maximum and the sum of exponentials together, once for the gradient.

#include "gpu.cuh"
#include "cross_entropy.h"

enum { THREADS = 256, WARPS = THREADS / 32 };

// The maximum of some numbers, and the sum of e^(number - maximum).
struct Softmax {
  float max, sum;
};

DEVICE Softmax joined(Softmax a, Softmax b) {
  const float max = fmaxf(a.max, b.max);
  // Of no numbers the sum is 0, whatever the exponent.
  const float left = a.sum == 0 ? 0 : a.sum * expf(a.max - max);
  const float right = b.sum == 0 ? 0 : b.sum * expf(b.max - max);
  return {max, left + right};
}

DEVICE Softmax of_block(Softmax own, Softmax (&warps)[WARPS]) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2)
    own = joined(own, {__shfl_xor_sync(~0u, own.max, distance), __shfl_xor_sync(~0u, own.sum, distance)});
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = own;
  __syncthreads();
  Softmax all = warps[0];
#pragma unroll
  for (int warp = 1; warp < WARPS; warp++) all = joined(all, warps[warp]);
  return all;
}

DEVICE float capped(const CrossEntropy &p, float z) { return p.soft_cap == 0 ? z : p.soft_cap * tanhf(z / p.soft_cap); }

DEVICE float gradient(const CrossEntropy &p, float y, float probability) {
  const float slope = p.soft_cap == 0 ? 1 : 1 - (y / p.soft_cap) * (y / p.soft_cap);
  return probability * p.scale * slope;
}

KERNEL(THREADS) cross_entropy(const __grid_constant__ CrossEntropy p) {
  extern __shared__ float memory[];
  Softmax(&warps)[WARPS] = *(Softmax(*)[WARPS])memory;
  float *row = (float *)p.logits + blockIdx.x * p.stride;
  const u32 target = ((const u32 *)p.targets)[blockIdx.x];
  Softmax own = {__int_as_float(0xff800000), 0};
  for (u32 i = threadIdx.x; i < p.vocabulary; i += THREADS) own = joined(own, {capped(p, row[i]), 1});
  const Softmax all = of_block(own, warps);
  if (threadIdx.x == 0)
    ((float *)p.losses)[blockIdx.x] = logf(all.sum) + (all.max - capped(p, row[target]));
  if (!p.has_gradient) return;
  // A piece is read by all threads before any of them writes, and what is written never reaches further
  // than what has been read: a gradient is half as long as a logit.
  for (u32 first = 0; first < p.vocabulary; first += THREADS) {
    const u32 i = first + threadIdx.x;
    const float y = i < p.vocabulary ? capped(p, row[i]) : 0;
    const float probability = expf(y - all.max) / all.sum - (i == target ? 1 : 0);
    __syncthreads();
    if (i < p.vocabulary) ((u16 *)row)[i] = (u16)bf16_pair(gradient(p, y, probability), 0);
  }
}
