/* The sum of squares of f32 numbers in f64: first sum_squares, which leaves a sum for every 16,384 numbers,
 * then sum_squares_total, which adds those up in their order. */
#ifndef QLORA_SUM_SQUARES_H
#define QLORA_SUM_SQUARES_H

typedef struct SumSquares {
  /** `[len]` f32 */
  unsigned long long x;
  /** `[len / 16384]` f64, rounded up */
  unsigned long long partial;
  /** `[1]` f64 */
  unsigned long long out;
  unsigned long long len;
} SumSquares;

#endif
