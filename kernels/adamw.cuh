// One step of AdamW on one number. Every operation is rounded by itself, so that a step gives the bits of
// the CPU: resuming on another device changes nothing.
#pragma once

#include "gpu.cuh"

// A trainable number and its moments.
struct Number {
  float value, m, v;
};

// a * x + b * y
DEVICE double blend(double a, double x, double b, double y) { return __dadd_rn(__dmul_rn(a, x), __dmul_rn(b, y)); }

template <class Params>
DEVICE Number stepped(const Params &p, Number before, float grad) {
  const double g = __dmul_rn(grad, p.clip);
  const double m = blend(p.beta1, before.m, 1 - p.beta1, g);
  const double v = __dadd_rn(__dmul_rn(p.beta2, before.v), __dmul_rn(__dmul_rn(1 - p.beta2, g), g));
  const double root = __dadd_rn(__ddiv_rn(__dsqrt_rn(v), p.root), p.epsilon);
  const double step = __ddiv_rn(__dmul_rn(p.size, m), root);
  return {(float)__dsub_rn(__dmul_rn(before.value, p.keep), step), (float)m, (float)v};
}
