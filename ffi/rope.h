/* Every head of x turned in place: pairs (i, i + half) by the angle whose cosine and sine are in a row of
 * tables: [half cosines | half sines] for each token. */
#ifndef QLORA_ROPE_H
#define QLORA_ROPE_H

typedef struct Rope {
  /** `[rows, heads * head_dim]` bf16 */
  unsigned long long x;
  /** `[rows, 2 * half]` f32 */
  unsigned long long tables;
  /** Numbers from a row to the next. */
  unsigned long long x_stride, table_stride;
  unsigned int heads, head_dim, half;
  /** Whether the turn is back: the gradient's. */
  unsigned int backward;
} Rope;

#endif
