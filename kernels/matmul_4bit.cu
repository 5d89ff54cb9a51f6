// Products of a few rows with a weight in four-bit blocks, which is decoded on its way into shared memory: a
// tile of it is a block to a row, whose halves two threads bring. The codes of the next tile are on their way
// while this one is multiplied. A second product, of plain numbers, goes on in the same sums.

#include "four_bit.cuh"
#include "matmul.cuh"
#include "matmul_4bit.h"

enum { STAGES = 2 };

// Half a block: 32 codes.
struct Half {
  uint4 codes;
  float scale;
  bool there;
};

// The half that this thread brings of the 64 x 64 numbers from row `row` and column `col` on, of `rows` rows.
DEVICE Half half_of(const Matmul4bit &p, u32 row, u32 col, u32 rows) {
  row += threadIdx.x / 2;
  if (row >= rows) return {{0, 0, 0, 0}, 0, false};
  const u64 block = (row * p.product.b_stride[0] + col) / BLOCK;
  return {((const uint4 *)p.product.b[0])[block * 2 + threadIdx.x % 2], scale_of(p, block), true};
}

DEVICE void decode_to(Tile &tile, const Matmul4bit &p, const Half &half) {
  const Table table = scaled(p.book, half.scale);
  const u32 codes[4] = {half.codes.x, half.codes.y, half.codes.z, half.codes.w};
#pragma unroll
  for (int i = 0; i < 4; i++)
    *(uint4 *)chunk(tile, threadIdx.x / 2, threadIdx.x % 2 * 4 + i) =
        half.there ? decode(table, codes[i]) : make_uint4(0, 0, 0, 0);
}

// The weight is stored [k, n] if ACROSS, else [n, k].
template <bool ACROSS>
DEVICE void run(const Matmul4bit &weight) {
  const Matmul &p = weight.product;
  extern __shared__ __align__(128) u8 memory[];
  Stage<Small> *stages = (Stage<Small> *)memory;
  const u32 m0 = blockIdx.y * Small::M, n0 = blockIdx.x * Small::N;
  Sums<Small> sums = no_sums<Small>();
  const u32 first = tiles_of(p.k[0]), tiles = first + tiles_of(p.k[1]);
  const auto fetch_dense = [&](u32 tile, u32 to) {
    const int i = tile >= first;
    const u32 k = (i ? tile - first : tile) * DEPTH;
    const Matrix a = {(const u16 *)(i ? p.a[1] : p.a[0]), i ? p.a_stride[1] : p.a_stride[0], p.m, i ? p.k[1] : p.k[0]};
    fetch_all<Small::THREADS, 1, false>(stages[to].a, a, m0, k);
    if (i) fetch_all<Small::THREADS, 1, ACROSS>(stages[to].b, operand(p.b[1], p.b_stride[1], p.n, p.k[1], ACROSS), n0, k);
    copy_commit();
  };
  const auto codes_of = [&](u32 tile) {
    const u32 k = tile * DEPTH;
    return ACROSS ? half_of(weight, k, n0, p.k[0]) : half_of(weight, n0, k, p.n);
  };
  fetch_dense(0, 0);
  if (first > 0) decode_to(stages[0].b[0], weight, codes_of(0));
  for (u32 tile = 0, full = 0; tile < tiles; tile++, full ^= 1) {
    const u32 next = tile + 1;
    Half half = {};
    if (next < tiles) {
      fetch_dense(next, full ^ 1);
      if (next < first) half = codes_of(next);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    __syncthreads();
    add_stage<Small, false, ACROSS>(sums, stages[full]);
    if (next < first) decode_to(stages[full ^ 1].b[0], weight, half);
    __syncthreads();
  }
  put_all(p, sums, m0, n0);
}

KERNEL(Small::THREADS) matmul_4bit_nt(const __grid_constant__ Matmul4bit p) { run<false>(p); }

KERNEL(Small::THREADS) matmul_4bit_nn(const __grid_constant__ Matmul4bit p) { run<true>(p); }
