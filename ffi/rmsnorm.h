/* Rows cut into groups of `width` numbers: y (=|+=) x * r * (weight + center), r = 1/sqrt(mean(x^2) + eps).
 * Backward: g = dy * (weight + center), dx (=|+=) r * (g - x * r * mean(g * x * r)); dx may be dy. */
#ifndef QLORA_RMSNORM_H
#define QLORA_RMSNORM_H

typedef struct Rmsnorm {
  /** `[rows, groups * width]` bf16 */
  unsigned long long x;
  /** `[width]` f32 */
  unsigned long long weight;
  /** y or dx `[rows, groups * width]` bf16 */
  unsigned long long out;
  /** dy `[rows, groups * width]` bf16, or 0 forward */
  unsigned long long dy;
  /** Numbers from a row to the next. */
  unsigned long long x_stride, out_stride, dy_stride;
  /** Groups in a row. */
  unsigned int groups;
  /** Numbers in a group: even. */
  unsigned int width;
  float eps;
  /** 0, or 1 where the factor is 1 + weight. */
  float center;
  /** Whether the result is added to what is there. */
  unsigned int add;
} Rmsnorm;

#endif
