/* One step of AdamW on f32 numbers, computed in f64 without contraction: the bits of the CPU.
 *
 * g = clip * grad, m = beta1 * m + (1 - beta1) * g, v = beta2 * v + (1 - beta2) * g * g,
 * value = value * keep - size * m / (sqrt(v) / root + epsilon) */
#ifndef QLORA_ADAMW_H
#define QLORA_ADAMW_H

typedef struct Adamw {
  /** `[len]` f32 */
  unsigned long long values;
  /** `[len]` f32 */
  unsigned long long grads;
  /** First moments `[len]` f32. */
  unsigned long long m;
  /** Second moments `[len]` f32. */
  unsigned long long v;
  unsigned long long len;
  double beta1, beta2;
  /** Factor of every gradient. */
  double clip;
  /** 1 - rate * decay */
  double keep;
  /** rate / (1 - beta1^t) */
  double size;
  /** sqrt(1 - beta2^t) */
  double root;
  double epsilon;
} Adamw;

#endif
