/* Four-bit codes to bf16: out[i] = RN(book[code i] * scale of its block), one rounding.
 *
 * Blocks have 64 values, two to a byte, the first in the upper half. A block's scale is absmax as f32, or
 * map[absmax] * nested_absmax[block / 256] + offset where nested_absmax is given: two roundings. */
#ifndef QLORA_DEQUANTIZE_H
#define QLORA_DEQUANTIZE_H

typedef struct Dequantize {
  /** `[values / 2]` */
  unsigned long long codes;
  /** `[blocks]` f32, or u8 if nested */
  unsigned long long absmax;
  /** `[blocks / 256]` f32, or 0 */
  unsigned long long nested_absmax;
  /** `[256]` f32, if nested */
  unsigned long long map;
  /** `[values]` bf16, 16-byte aligned */
  unsigned long long out;
  /** Count, a multiple of 64. */
  unsigned long long values;
  /** Added to a nested scale. */
  float offset;
  /** What the codes stand for. */
  float book[16];
} Dequantize;

#endif
