// AdamW, a number to a thread. Every operation is rounded by itself, so that a step gives the bits of the
// CPU: resuming on another device changes nothing.

#include "gpu.cuh"
#include "adamw.h"

enum { THREADS = 256 };

// a * x + b * y
DEVICE double blend(double a, double x, double b, double y) { return __dadd_rn(__dmul_rn(a, x), __dmul_rn(b, y)); }

KERNEL(THREADS) adamw(const __grid_constant__ Adamw p) {
  float *__restrict__ values = (float *)p.values;
  const float *__restrict__ grads = (const float *)p.grads;
  float *__restrict__ ms = (float *)p.m;
  float *__restrict__ vs = (float *)p.v;
  const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
  if (i >= p.len) return;
  const double g = __dmul_rn(grads[i], p.clip);
  const double m = blend(p.beta1, ms[i], 1 - p.beta1, g);
  const double v = __dadd_rn(__dmul_rn(p.beta2, vs[i]), __dmul_rn(__dmul_rn(1 - p.beta2, g), g));
  const double root = __dadd_rn(__ddiv_rn(__dsqrt_rn(v), p.root), p.epsilon);
  const double step = __ddiv_rn(__dmul_rn(p.size, m), root);
  values[i] = (float)__dsub_rn(__dmul_rn(values[i], p.keep), step);
  ms[i] = (float)m;
  vs[i] = (float)v;
}
