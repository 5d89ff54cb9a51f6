// bf16 products on tensor cores. A block computes 64 x 64 numbers with 128 threads, a warp 32 x 32 of them.
// Tiles of both operands with a depth of 64 come through two stages of cp.async into swizzled shared
// memory: a tile is 64 rows of eight 16-byte chunks, and chunk c of row r lies at c ^ (r % 8), so that
// the eight rows that ldmatrix reads at once are in different banks.
//
// A second product goes on in the same sums: LoRA's columns ride in the product of the weight.
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

// Whether every row begins at a multiple of 16 bytes, as asynchronous copies want it.
DEVICE bool is_aligned(const Matrix &matrix) { return ((u64)matrix.numbers % 16 | matrix.stride % 8) == 0; }

// Eight numbers to shared memory one by one: the first `count` of them, and zeros.
DEVICE void copy_numbers(u16 *to, const u16 *from, u32 count) {
  u32 words[4];
#pragma unroll
  for (u32 i = 0; i < 4; i++) {
    const u32 low = 2 * i < count ? from[2 * i] : 0, high = 2 * i + 1 < count ? from[2 * i + 1] : 0;
    words[i] = low | high << 16;
  }
  *(uint4 *)to = make_uint4(words[0], words[1], words[2], words[3]);
}

// Starts the copy of 64 x 64 numbers from row `row` and column `col` on; what is beyond the matrix is 0.
DEVICE void fetch(Tile &tile, const Matrix &from, u32 row, u32 col) {
  const bool aligned = is_aligned(from);
#pragma unroll
  for (int i = 0; i < 64 * 8 / THREADS; i++) {
    const int r = (threadIdx.x + i * THREADS) / 8, c = (threadIdx.x + i * THREADS) % 8;
    const u32 left = row + r < from.rows && col + c * 8 < from.cols ? from.cols - col - c * 8 : 0;
    const u64 at = left > 0 ? (row + r) * from.stride + col + c * 8 : 0;
    const u32 count = min(left, 8u);
    if (aligned)
      copy_async(chunk(tile, r, c), from.numbers + at, count * 2);
    else
      copy_numbers(chunk(tile, r, c), from.numbers + at, count);
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

DEVICE void put(const Matmul &p, u32 row, u32 col, float sum) {
  if (row >= p.m || col >= p.n) return;
  const u64 at = row * p.out_stride + col;
  float value = sum * p.alpha;
  if (p.bias) value += ((const float *)p.bias)[col];
  if (p.residual) value += bf16_low(((const u16 *)p.residual)[row * p.residual_stride + col]);
  if (p.wide) {
    float *out = (float *)p.out + at;
    *out = p.add ? *out + value : value;
  } else {
    u16 *out = (u16 *)p.out + at;
    if (p.add) value += bf16_low(*out);
    *out = (u16)bf16_pair(value, 0);
  }
}

// The left operand of a product, or the right one: `size` numbers of the result by k.
DEVICE Matrix operand(u64 numbers, u64 stride, u32 size, u32 k, bool across) {
  return {(const u16 *)numbers, stride, across ? k : size, across ? size : k};
}

// a is stored [k, m] if A_ACROSS, b [k, n] if B_ACROSS.
template <bool A_ACROSS, bool B_ACROSS>
DEVICE void run(const Matmul &p) {
  extern __shared__ __align__(128) u8 memory[];
  Shared &s = *(Shared *)memory;
  const u32 m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int wm = warp / 2 * 32, wn = warp % 2 * 32;
  float sums[2][4][4] = {};
  // The depth is that of the first product, in whole tiles, and then that of the second.
  const u32 first = (p.k[0] + DEPTH - 1) / DEPTH, tiles = first + (p.k[1] + DEPTH - 1) / DEPTH;
  const auto fetch_both = [&](int stage, u32 tile) {
    const int i = tile >= first;
    const u32 k = (i ? tile - first : tile) * DEPTH, depth = i ? p.k[1] : p.k[0];
    const Matrix a = operand(i ? p.a[1] : p.a[0], i ? p.a_stride[1] : p.a_stride[0], p.m, depth, A_ACROSS);
    const Matrix b = operand(i ? p.b[1] : p.b[0], i ? p.b_stride[1] : p.b_stride[0], p.n, depth, B_ACROSS);
    fetch(s.a[stage], a, A_ACROSS ? k : m0, A_ACROSS ? m0 : k);
    fetch(s.b[stage], b, B_ACROSS ? k : n0, B_ACROSS ? n0 : k);
  };
  if (tiles > 0) fetch_both(0, 0);
  copy_commit();
  for (u32 tile = 0, stage = 0; tile < tiles; tile++, stage ^= 1) {
    if (tile + 1 < tiles) fetch_both(stage ^ 1, tile + 1);
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
