/* out [m, n] (=|+=) alpha * a . b, bf16 in, sums in f32, by one of three kernels:
 *   matmul_nt: a [m, k], b [n, k]    matmul_nn: a [m, k], b [k, n]    matmul_tn: a [k, m], b [k, n]
 * Rows of a and b begin at multiples of 16 bytes; what is between a row's end and the next such multiple is
 * read, and must be 0 where K runs along the rows. */
#ifndef QLORA_MATMUL_H
#define QLORA_MATMUL_H

typedef struct Matmul {
  /** bf16 */
  unsigned long long a;
  /** bf16 */
  unsigned long long b;
  /** `[m, n]` bf16, or f32 if wide */
  unsigned long long out;
  /** Numbers from a row to the next; of a and b multiples of 8. */
  unsigned long long a_stride, b_stride, out_stride;
  unsigned int m, n, k;
  float alpha;
  /** Whether the result is added to what is there. */
  unsigned int add;
  /** Whether out is f32. */
  unsigned int wide;
} Matmul;

#endif
