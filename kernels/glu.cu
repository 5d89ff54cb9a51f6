// Gated units, forward and backward: a block for each row. For each activation act(x) = x * c(x), c being
// a distribution function, and act'(x) = c(x) + x * c'(x).

#include "gpu.cuh"
#include "glu.h"

enum { THREADS = 256 };

struct Gate {
  float value, slope;
};

// c(z) and c'(z) of the logistic function: e^-|z| neither overflows nor cancels.
DEVICE Gate logistic(float z) {
  const float e = expf(-fabsf(z)), greater = 1 / (1 + e), smaller = e * greater;
  return {z < 0 ? smaller : greater, greater * smaller};
}

DEVICE Gate activated(u32 activation, float x) {
  Gate c;
  float inner = 1;
  if (activation == 0) {
    c = logistic(x);
  } else if (activation == 1) {
    const float linear = 1.5957691216f, cubic = linear * 0.044715f;  // sqrt(8 / pi)
    c = logistic(x * (linear + cubic * x * x));
    inner = linear + 3 * cubic * x * x;
  } else {
    c.value = 0.5f * erfcf(x * -0.70710678118f);
    c.slope = 0.39894228040f * expf(-0.5f * x * x);  // 1 / sqrt(2 pi)
  }
  return {x * c.value, c.value + x * c.slope * inner};
}

KERNEL(THREADS) glu(const __grid_constant__ Glu p) {
  const u16 *__restrict__ gate = (const u16 *)p.gate_up + blockIdx.x * p.gate_up_stride;
  const u16 *__restrict__ up = gate + p.width;
  u16 *__restrict__ h = (u16 *)p.h + blockIdx.x * p.h_stride;
  for (u32 i = threadIdx.x; i < p.width; i += THREADS) {
    const float value = activated(p.activation, bf16_low(gate[i])).value;
    h[i] = (u16)bf16_pair(value * bf16_low(up[i]), 0);
  }
}

KERNEL(THREADS) glu_backward(const __grid_constant__ Glu p) {
  const u16 *__restrict__ gate = (const u16 *)p.gate_up + blockIdx.x * p.gate_up_stride;
  const u16 *__restrict__ up = gate + p.width;
  u16 *__restrict__ h = (u16 *)p.h + blockIdx.x * p.h_stride;
  u16 *__restrict__ d_gate = (u16 *)p.d_gate_up + blockIdx.x * p.d_gate_up_stride;
  u16 *__restrict__ d_up = d_gate + p.width;
  for (u32 i = threadIdx.x; i < p.width; i += THREADS) {
    const Gate act = activated(p.activation, bf16_low(gate[i]));
    const float dh = bf16_low(h[i]), u = bf16_low(up[i]);
    const u32 gradients = bf16_pair(dh * u * act.slope, dh * act.value);
    d_gate[i] = (u16)gradients;
    d_up[i] = (u16)(gradients >> 16);
    h[i] = (u16)bf16_pair(act.value * u, 0);
  }
}
