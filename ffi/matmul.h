/* out [m, n] (=|+=) alpha * (a[0] . b[0] + a[1] . b[1]) + bias + residual, bf16 in, sums in f32 and one
 * rounding, by one of three kernels and their large twins, which compute 128 x 128 numbers with a block and
 * not 64 x 64:
 *   matmul_nt: a [m, k], b [n, k]    matmul_nn: a [m, k], b [k, n]    matmul_tn: a [k, m], b [k, n]
 * Rows of a and b that begin at multiples of 16 bytes are faster. A second product that is not there has
 * k = 0. */
#ifndef QLORA_MATMUL_H
#define QLORA_MATMUL_H

typedef struct Matmul {
  /** bf16 */
  unsigned long long a[2];
  /** bf16 */
  unsigned long long b[2];
  /** `[m, n]` bf16, or f32 if wide */
  unsigned long long out;
  /** `[n]` f32, or 0 */
  unsigned long long bias;
  /** `[m, n]` bf16, or 0 */
  unsigned long long residual;
  /** Numbers from a row to the next. */
  unsigned long long a_stride[2], b_stride[2];
  /** Numbers from a row to the next. */
  unsigned long long out_stride, residual_stride;
  unsigned int k[2];
  unsigned int m, n;
  float alpha;
  /** Whether the result is added to what is there. */
  unsigned int add;
  /** Whether out is f32. */
  unsigned int wide;
} Matmul;

#endif
