// What products have in common: tiles of operands in shared memory, fragments of them, and results.
//
// Tiles are 64 rows of eight 16-byte chunks, where chunk c of row r lies at c ^ (r % 8), so that the eight rows
// that ldmatrix reads at once are in different banks. Where K runs along the rows of an operand, ldmatrix gives
// the fragments as they are; where it runs across them, the tile is stored as it comes and transposed by
// ldmatrix.trans.
#pragma once

#include "gpu.cuh"
#include "matmul.h"

enum { TILE = 64, DEPTH = 64 };

struct Tile {
  u16 numbers[TILE * DEPTH];
};

// What a block computes that is not large, and how it is dealt to warps.
struct Small {
  enum { M = 64, N = 64, WARPS_M = 2, WARPS_N = 2, THREADS = 128 };
};

// A stage: the tiles of both operands.
template <class Shape>
struct Stage {
  Tile a[Shape::M / TILE], b[Shape::N / TILE];
};

DEVICE u16 *chunk(Tile &tile, int row, int chunk) { return tile.numbers + row * DEPTH + ((chunk ^ (row & 7)) << 3); }

// An operand: rows and columns of the stored matrix.
struct Matrix {
  const u16 *numbers;
  u64 stride;
  u32 rows, cols;
};

// The left operand of a product, or the right one: `size` numbers of the result by k.
DEVICE Matrix operand(u64 numbers, u64 stride, u32 size, u32 k, bool across) {
  return {(const u16 *)numbers, stride, across ? k : size, across ? size : k};
}

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

// Brings 64 x 64 numbers from row `row` and column `col` on; what is beyond the matrix is 0.
template <int THREADS>
DEVICE void fetch(Tile &tile, const Matrix &from, u32 row, u32 col) {
  const int c = threadIdx.x % 8;
  const u32 left = col + c * 8 < from.cols ? min(from.cols - col - c * 8, 8u) : 0;
  // What is not there is not read, wherever it would be.
  const u16 *first = from.numbers + row * from.stride + col + c * 8;
  if (is_aligned(from)) {
#pragma unroll
    for (int r = threadIdx.x / 8; r < TILE; r += THREADS / 8)
      copy_async(chunk(tile, r, c), first + r * from.stride, row + r < from.rows ? left * 2 : 0);
  } else {
#pragma unroll 1
    for (int r = threadIdx.x / 8; r < TILE; r += THREADS / 8)
      copy_numbers(chunk(tile, r, c), first + r * from.stride, row + r < from.rows ? left : 0);
  }
}

// All tiles of an operand: from number `first` of the result and depth `k` on.
template <int THREADS, int TILES, bool ACROSS>
DEVICE void fetch_all(Tile (&tiles)[TILES], const Matrix &from, u32 first, u32 k) {
#pragma unroll
  for (int i = 0; i < TILES; i++)
    fetch<THREADS>(tiles[i], from, ACROSS ? k : first + i * TILE, ACROSS ? first + i * TILE : k);
}

// The 16 x 16 fragment of a from row `row` of the result and depth `k` on.
template <bool ACROSS>
DEVICE void left_fragment(u32 (&to)[4], Tile *tiles, int row, int k) {
  const int lane = threadIdx.x % 32, eight = lane % 8, second = lane / 8 % 2, third = lane / 16;
  Tile &tile = tiles[row / TILE];
  row %= TILE;
  if (ACROSS)
    load_transposed(to, chunk(tile, k + eight + third * 8, row / 8 + second));
  else
    load_matrices(to, chunk(tile, row + eight + second * 8, k / 8 + third));
}

// Two 16 x 8 fragments of b from column `col` of the result and depth `k` on.
template <bool ACROSS>
DEVICE void right_fragments(u32 (&to)[4], Tile *tiles, int col, int k) {
  const int lane = threadIdx.x % 32, eight = lane % 8, second = lane / 8 % 2, third = lane / 16;
  Tile &tile = tiles[col / TILE];
  col %= TILE;
  if (ACROSS)
    load_transposed(to, chunk(tile, k + eight + second * 8, col / 8 + third));
  else
    load_matrices(to, chunk(tile, col + eight + third * 8, k / 8 + second));
}

// What becomes of a sum.
DEVICE float finished(const Matmul &p, u32 row, u32 col, float sum) {
  float value = sum * p.alpha;
  if (p.bias) value += ((const float *)p.bias)[col];
  if (p.residual) value += bf16_low(((const u16 *)p.residual)[row * p.residual_stride + col]);
  if (!p.add) return value;
  const u64 at = row * p.out_stride + col;
  return value + (p.wide ? ((const float *)p.out)[at] : bf16_low(((const u16 *)p.out)[at]));
}

// Writes two neighbours of a row, at once where both are there and the place allows it.
DEVICE void put(const Matmul &p, u32 row, u32 col, float first, float second) {
  if (row >= p.m || col >= p.n) return;
  const bool both = col + 1 < p.n;
  first = finished(p, row, col, first);
  if (both) second = finished(p, row, col + 1, second);
  const u64 at = row * p.out_stride + col;
  if (p.wide) {
    float *out = (float *)p.out + at;
    out[0] = first;
    if (both) out[1] = second;
    return;
  }
  u16 *out = (u16 *)p.out + at;
  const u32 pair = bf16_pair(first, second);
  if (both && (u64)out % 4 == 0) {
    *(u32 *)out = pair;
    return;
  }
  out[0] = (u16)pair;
  if (both) out[1] = (u16)(pair >> 16);
}

// The sums of a warp: 16 x 8 numbers each.
template <class Shape>
struct Sums {
  enum { ROWS = Shape::M / Shape::WARPS_M, COLS = Shape::N / Shape::WARPS_N };
  float of[ROWS / 16][COLS / 8][4];
  // Where they begin within the block.
  int row, col;
};

template <class Shape>
DEVICE Sums<Shape> no_sums() {
  const int warp = threadIdx.x / 32;
  return {{}, warp / Shape::WARPS_N * Sums<Shape>::ROWS, warp % Shape::WARPS_N * Sums<Shape>::COLS};
}

// Adds the products of a stage.
template <class Shape, bool A_ACROSS, bool B_ACROSS>
DEVICE void add_stage(Sums<Shape> &sums, Stage<Shape> &stage) {
  enum { ROWS = Sums<Shape>::ROWS, COLS = Sums<Shape>::COLS };
#pragma unroll
  for (int depth = 0; depth < DEPTH; depth += 16) {
    u32 left[ROWS / 16][4], right[COLS / 16][4];
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++) left_fragment<A_ACROSS>(left[i], stage.a, sums.row + i * 16, depth);
#pragma unroll
    for (int j = 0; j < COLS / 16; j++) right_fragments<B_ACROSS>(right[j], stage.b, sums.col + j * 16, depth);
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++)
#pragma unroll
      for (int j = 0; j < COLS / 8; j++)
        multiply(sums.of[i][j], left[i], right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]);
  }
}

template <class Shape>
DEVICE void put_all(const Matmul &p, const Sums<Shape> &sums, u32 m0, u32 n0) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < Sums<Shape>::ROWS / 16; i++)
#pragma unroll
    for (int j = 0; j < Sums<Shape>::COLS / 8; j++)
#pragma unroll
      for (int h = 0; h < 2; h++)
        put(p, m0 + sums.row + i * 16 + lane / 4 + h * 8, n0 + sums.col + j * 8 + lane % 4 * 2,
            sums.of[i][j][2 * h], sums.of[i][j][2 * h + 1]);
}

// Whole and broken tiles of a depth.
DEVICE u32 tiles_of(u32 k) { return (k + DEPTH - 1) / DEPTH; }
