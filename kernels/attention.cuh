// Tiles of attention: rows of one head in shared memory, forward and backward.
#pragma once

#include "gpu.cuh"

// Rows of a block: 16 for each warp.
enum { THREADS = 128, OWN = 64 };

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

// sums [16, N] of a warp = its own rows . the others^T.
template <int D, int N>
DEVICE void products(float (&sums)[N / 8][4], u16 *own, u16 *others) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int j = 0; j < N / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) sums[j][i] = 0;
  // The addresses of all steps of the widest head would not fit into registers beside its gradients.
#pragma unroll(D == 256 ? 4 : D / 16)
  for (int d = 0; d < D / 16; d++) {
    u32 left[4];
    load_matrices(left, chunk<D>(own, warp * 16 + lane % 16, d * 2 + lane / 16));
#pragma unroll
    for (int j = 0; j < N / 16; j++) {
      u32 right[4];
      load_matrices(right, chunk<D>(others, j * 16 + lane % 8 + lane / 16 * 8, d * 2 + lane / 8 % 2));
      multiply(sums[2 * j], left, right[0], right[1]);
      multiply(sums[2 * j + 1], left, right[2], right[3]);
    }
  }
}

// out [16, COLUMNS] of a warp += weights [16, N] . the others, from column `first` on.
template <int D, int N, int COLUMNS>
DEVICE void gather(float (&out)[COLUMNS / 8][4], const float (&weights)[N / 8][4], u16 *others, int first) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < N / 16; j++) {
    const u32 left[4] = {
        bf16_pair(weights[2 * j][0], weights[2 * j][1]), bf16_pair(weights[2 * j][2], weights[2 * j][3]),
        bf16_pair(weights[2 * j + 1][0], weights[2 * j + 1][1]),
        bf16_pair(weights[2 * j + 1][2], weights[2 * j + 1][3])};
#pragma unroll
    for (int d = 0; d < COLUMNS / 16; d++) {
      u32 right[4];
      load_transposed(right, chunk<D>(others, j * 16 + lane % 16, first / 8 + d * 2 + lane / 16));
      multiply(out[2 * d], left, right[0], right[1]);
      multiply(out[2 * d + 1], left, right[2], right[3]);
    }
  }
}
