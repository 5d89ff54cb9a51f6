/* out (=|+=) x, where the random word of a number's position is not below the threshold, times scale, and
 * 0 elsewhere. The word of element e = row * cols + col is word e mod 4 of Philox4x32-10 with the seed as
 * its key and (e / 4, stream) as its counter. */
#ifndef QLORA_DROPOUT_H
#define QLORA_DROPOUT_H

typedef struct Dropout {
  /** `[rows, cols]` bf16 */
  unsigned long long x;
  /** `[rows, cols]` bf16 */
  unsigned long long out;
  unsigned long long rows, cols;
  /** Numbers from a row to the next. */
  unsigned long long x_stride, out_stride;
  unsigned long long seed, stream;
  /** p * 2^32 */
  unsigned int threshold;
  /** 1 / (1 - p) */
  float scale;
  /** Whether the result is added to what is there. */
  unsigned int add;
} Dropout;

#endif
