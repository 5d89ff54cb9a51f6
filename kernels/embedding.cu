// Rows of a table by token, scaled: a block for each row.

#include "gpu.cuh"
#include "embedding.h"

enum { THREADS = 128 };

KERNEL(THREADS) embedding(const __grid_constant__ Embedding p) {
  const u32 token = ((const u32 *)p.tokens)[blockIdx.x];
  const u16 *__restrict__ row = (const u16 *)p.table + token * p.table_stride;
  u16 *__restrict__ out = (u16 *)p.out + blockIdx.x * p.out_stride;
  for (u32 i = threadIdx.x; i < p.cols; i += THREADS) out[i] = (u16)bf16_pair(bf16_low(row[i]) * p.scale, 0);
}
