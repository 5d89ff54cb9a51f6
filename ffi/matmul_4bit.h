/* A product as in matmul.h whose first right operand is in four-bit blocks: b[0] are its codes, and values are
 * what dequantize.h makes of them. Its rows are whole blocks: b_stride[0] is their length, a multiple of 64.
 * Each row of 64 x 64 numbers of the result decodes it once, so this is for few rows. */
#ifndef QLORA_MATMUL_4BIT_H
#define QLORA_MATMUL_4BIT_H

#include "matmul.h"

typedef struct Matmul4bit {
  Matmul product;
  /** `[blocks]` f32, or u8 if nested */
  unsigned long long absmax;
  /** `[blocks / 256]` f32, or 0 */
  unsigned long long nested_absmax;
  /** `[256]` f32, if nested */
  unsigned long long map;
  /** Added to a nested scale. */
  float offset;
  /** What the codes stand for. */
  float book[16];
} Matmul4bit;

#endif
