// y = x / sqrt(mean(x^2) + eps) * w, a block for each row of bf16: loops, shuffles, shared memory, a
// barrier. `scripts/compile_kernels.py` makes rmsnorm.ptx of it.

typedef unsigned int u32;
typedef unsigned long long u64;

struct Params {
  u64 x;    // [rows, dim] bf16
  u64 w;    // [dim] f32
  u64 y;    // [rows, dim] bf16
  u32 dim;  // even
  float eps;
};

static __device__ u32 pair(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

static __device__ float sum_of_warp(float x) {
  for (int distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(0xffffffffu, x, distance);
  return x;
}

extern "C" __global__ void __launch_bounds__(256) rmsnorm(const __grid_constant__ Params p) {
  extern __shared__ float sums[];
  const u32 *__restrict__ x = (const u32 *)p.x + (u64)blockIdx.x * (p.dim / 2);
  const float *__restrict__ w = (const float *)p.w;
  u32 *__restrict__ y = (u32 *)p.y + (u64)blockIdx.x * (p.dim / 2);
  float sum = 0;
  for (u32 i = threadIdx.x; i < p.dim / 2; i += blockDim.x) {
    const float low = __uint_as_float(x[i] << 16), high = __uint_as_float(x[i] & 0xffff0000u);
    sum += low * low + high * high;
  }
  sum = sum_of_warp(sum);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = sum_of_warp(threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0);
  const float r = rsqrtf(sum / p.dim + p.eps);
  for (u32 i = threadIdx.x; i < p.dim / 2; i += blockDim.x) {
    const float low = __uint_as_float(x[i] << 16), high = __uint_as_float(x[i] & 0xffff0000u);
    y[i] = pair(low * r * w[2 * i], high * r * w[2 * i + 1]);
  }
}
