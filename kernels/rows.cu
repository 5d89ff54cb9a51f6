// Rows gathered, scattered and added: a block for each packed row.

#include "gpu.cuh"
#include "rows.h"

enum { THREADS = 128 };

DEVICE u16 *packed_row(const Rows &p) { return (u16 *)p.packed + blockIdx.x * p.packed_stride; }

DEVICE u16 *spread_row(const Rows &p, u32 row) { return (u16 *)p.spread + row * p.spread_stride; }

DEVICE void copy_row(u16 *__restrict__ to, const u16 *__restrict__ from, u32 cols) {
  for (u32 i = threadIdx.x; i < cols; i += THREADS) to[i] = from[i];
}

KERNEL(THREADS) gather_rows(const __grid_constant__ Rows p) {
  copy_row(packed_row(p), spread_row(p, ((const u32 *)p.index)[blockIdx.x]), p.cols);
}

KERNEL(THREADS) scatter_rows(const __grid_constant__ Rows p) {
  copy_row(spread_row(p, ((const u32 *)p.index)[blockIdx.x]), packed_row(p), p.cols);
}

KERNEL(THREADS) add_rows(const __grid_constant__ Rows p) {
  u16 *__restrict__ sum = packed_row(p);
  const u16 *__restrict__ more = spread_row(p, blockIdx.x);
  for (u32 i = threadIdx.x; i < p.cols; i += THREADS)
    sum[i] = (u16)bf16_pair(bf16_low(sum[i]) + bf16_low(more[i]), 0);
}
