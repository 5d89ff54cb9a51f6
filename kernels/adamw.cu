// AdamW, a number to a thread.

#include "adamw.cuh"
#include "adamw.h"

enum { THREADS = 256 };

KERNEL(THREADS) adamw(const __grid_constant__ Adamw p) {
  float *__restrict__ values = (float *)p.values;
  const float *__restrict__ grads = (const float *)p.grads;
  float *__restrict__ ms = (float *)p.m;
  float *__restrict__ vs = (float *)p.v;
  const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
  if (i >= p.len) return;
  const Number after = stepped(p, {values[i], ms[i], vs[i]}, grads[i]);
  values[i] = after.value;
  ms[i] = after.m;
  vs[i] = after.v;
}
