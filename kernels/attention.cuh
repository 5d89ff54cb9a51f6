// Tiles of attention: rows of one head in shared memory, forward and backward.
#pragma once

#include "gpu.cuh"

enum { THREADS = 128 };

struct Segment {
  u32 q_start, q_len, k_start, k_len;
};

// Rows of D numbers in shared memory, chunk c of row r at c ^ (r % 8).
template <int D>
DEVICE u16 *chunk(u16 *tile, int row, int chunk) {
  return tile + row * D + ((chunk ^ (row & 7)) << 3);
}

// Starts the copy of ROWS rows of a head; rows beyond `rows` and numbers beyond `head_dim` become 0.
template <int D, int ROWS>
DEVICE void fetch(u16 *tile, const u16 *from, u64 stride, u32 rows, u32 head_dim) {
  for (int i = threadIdx.x; i < ROWS * (D / 8); i += THREADS) {
    const u32 row = i / (D / 8), c = i % (D / 8);
    const bool there = row < rows && c * 8 < head_dim;
    copy_async(chunk<D>(tile, row, c), from + (there ? row * stride + c * 8 : 0), there ? 16 : 0);
  }
}
