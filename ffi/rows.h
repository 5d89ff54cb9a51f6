/* gather_rows: packed[i] = spread[index[i]]. scatter_rows: spread[index[i]] = packed[i], other rows stay.
 * add_rows: packed[i] = packed[i] + spread[i], rounded once; without an index. */
#ifndef QLORA_ROWS_H
#define QLORA_ROWS_H

typedef struct Rows {
  /** `[count, cols]` bf16 */
  unsigned long long packed;
  /** `[rows, cols]` bf16 */
  unsigned long long spread;
  /** `[count]` u32, distinct rows of spread */
  unsigned long long index;
  /** Numbers from a row to the next. */
  unsigned long long packed_stride, spread_stride;
  unsigned int cols;
} Rows;

#endif
