// bf16 products on tensor cores. A block computes 64 x 64 numbers with 128 threads, a warp 32 x 32 of them.
// Tiles of both operands with a depth of 64 come through two stages of cp.async into swizzled shared
// memory: a tile is 64 rows of eight 16-byte chunks, and chunk c of row r lies at c ^ (r % 8), so that
// the eight rows that ldmatrix reads at once are in different banks.
//
// Where K runs along the rows of an operand, ldmatrix gives the fragments as they are; where it runs across
// them, the tile is stored as it comes and transposed by ldmatrix.trans.

#include "gpu.cuh"
#include "matmul.h"

enum { TILE = 64, DEPTH = 64, THREADS = 128, STAGES = 2 };

struct Tile {
  u16 numbers[64 * 64];
};

struct Shared {
  Tile a[STAGES], b[STAGES];
};

DEVICE u16 *chunk(Tile &tile, int row, int chunk) { return tile.numbers + row * 64 + ((chunk ^ (row & 7)) << 3); }

// An operand: rows and columns of the stored matrix.
struct Matrix {
  const u16 *numbers;
  u64 stride;
  u32 rows, cols;
};

// Starts the copy of 64 x 64 numbers from row `row` and column `col` on. A row's end within a chunk is
// the end of what may be read: rows are padded to chunks.
DEVICE void fetch(Tile &tile, const Matrix &from, u32 row, u32 col) {
#pragma unroll
  for (int i = 0; i < 64 * 8 / THREADS; i++) {
    const int r = (threadIdx.x + i * THREADS) / 8, c = (threadIdx.x + i * THREADS) % 8;
    const bool there = row + r < from.rows && col + c * 8 < from.cols;
    const u64 at = there ? (row + r) * from.stride + col + c * 8 : 0;
    copy_async(chunk(tile, r, c), from.numbers + at, there);
  }
}

// The 16 x 16 fragment of a from row `row` of the result and depth `k` on.
template <bool ACROSS>
DEVICE void left_fragment(u32 (&to)[4], Tile &tile, int row, int k) {
  const int lane = threadIdx.x % 32, eight = lane % 8, second = lane / 8 % 2, third = lane / 16;
  if (ACROSS)
    load_transposed(to, chunk(tile, k + eight + third * 8, row / 8 + second));
  else
    load_matrices(to, chunk(tile, row + eight + second * 8, k / 8 + third));
}

// Two 16 x 8 fragments of b from column `col` of the result and depth `k` on.
template <bool ACROSS>
DEVICE void right_fragments(u32 (&to)[4], Tile &tile, int col, int k) {
  const int lane = threadIdx.x % 32, eight = lane % 8, second = lane / 8 % 2, third = lane / 16;
  if (ACROSS)
    load_transposed(to, chunk(tile, k + eight + second * 8, col / 8 + third));
  else
    load_matrices(to, chunk(tile, col + eight + third * 8, k / 8 + second));
}

DEVICE void put(const Matmul &p, u32 row, u32 col, float value) {
  if (row >= p.m || col >= p.n) return;
  const u64 at = row * p.out_stride + col;
  value *= p.alpha;
  if (p.wide) {
    float *out = (float *)p.out + at;
    *out = p.add ? *out + value : value;
  } else {
    u16 *out = (u16 *)p.out + at;
    if (p.add) value += bf16_low(*out);
    *out = (u16)bf16_pair(value, 0);
  }
}

// a is stored [k, m] if A_ACROSS, b [k, n] if B_ACROSS.
template <bool A_ACROSS, bool B_ACROSS>
DEVICE void run(const Matmul &p) {
  extern __shared__ __align__(128) u8 memory[];
  Shared &s = *(Shared *)memory;
  const Matrix a = {(const u16 *)p.a, p.a_stride, A_ACROSS ? p.k : p.m, A_ACROSS ? p.m : p.k};
  const Matrix b = {(const u16 *)p.b, p.b_stride, B_ACROSS ? p.k : p.n, B_ACROSS ? p.n : p.k};
  const u32 m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wm = warp / 2 * 32, wn = warp % 2 * 32;
  float sums[2][4][4] = {};
  const auto fetch_both = [&](int stage, u32 k) {
    fetch(s.a[stage], a, A_ACROSS ? k : m0, A_ACROSS ? m0 : k);
    fetch(s.b[stage], b, B_ACROSS ? k : n0, B_ACROSS ? n0 : k);
  };
  fetch_both(0, 0);
  copy_commit();
  for (u32 k = 0, stage = 0; k < p.k; k += DEPTH, stage ^= 1) {
    if (k + DEPTH < p.k) fetch_both(stage ^ 1, k + DEPTH);
    copy_commit();
    copy_wait<1>();
    __syncthreads();
#pragma unroll
    for (int depth = 0; depth < DEPTH; depth += 16) {
      u32 left[2][4], right[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        left_fragment<A_ACROSS>(left[i], s.a[stage], wm + i * 16, depth);
        right_fragments<B_ACROSS>(right[i], s.b[stage], wn + i * 16, depth);
      }
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
          multiply(sums[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
    }
    __syncthreads();
  }
  copy_wait<0>();
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int h = 0; h < 4; h++)
        put(p, m0 + wm + i * 16 + lane / 4 + h / 2 * 8, n0 + wn + j * 8 + lane % 4 * 2 + h % 2, sums[i][j][h]);
}

KERNEL(THREADS) matmul_nt(const __grid_constant__ Matmul p) { run<false, false>(p); }

KERNEL(THREADS) matmul_nn(const __grid_constant__ Matmul p) { run<false, true>(p); }

KERNEL(THREADS) matmul_tn(const __grid_constant__ Matmul p) { run<true, true>(p); }
