// bf16 products on tensor cores. A block computes M x N numbers, its warps a part each. Operands come with a
// depth of 64 through three stages of cp.async into shared memory. A second product goes on in the same sums:
// LoRA's columns ride in that of the weight.

#include "matmul.cuh"

enum { STAGES = 3 };

// For results that fill it; half as many numbers are brought for each product.
struct Large {
  enum { M = 128, N = 128, WARPS_M = 2, WARPS_N = 4, THREADS = 256 };
};

// a is stored [k, m] if A_ACROSS, b [k, n] if B_ACROSS.
template <class Shape, bool A_ACROSS, bool B_ACROSS>
DEVICE void run(const Matmul &p) {
  extern __shared__ __align__(128) u8 memory[];
  Stage<Shape> *stages = (Stage<Shape> *)memory;
  const u32 m0 = blockIdx.y * Shape::M, n0 = blockIdx.x * Shape::N;
  Sums<Shape> sums = no_sums<Shape>();
  // The depth is that of the first product, in whole tiles, and then that of the second.
  const u32 first = tiles_of(p.k[0]), tiles = first + tiles_of(p.k[1]);
  const auto fetch_both = [&](u32 tile, u32 to) {
    if (tile < tiles) {
      const int i = tile >= first;
      const u32 k = (i ? tile - first : tile) * DEPTH, depth = i ? p.k[1] : p.k[0];
      const Matrix a = operand(i ? p.a[1] : p.a[0], i ? p.a_stride[1] : p.a_stride[0], p.m, depth, A_ACROSS);
      const Matrix b = operand(i ? p.b[1] : p.b[0], i ? p.b_stride[1] : p.b_stride[0], p.n, depth, B_ACROSS);
      fetch_all<Shape::THREADS, Shape::M / TILE, A_ACROSS>(stages[to].a, a, m0, k);
      fetch_all<Shape::THREADS, Shape::N / TILE, B_ACROSS>(stages[to].b, b, n0, k);
    }
    copy_commit();
  };
#pragma unroll
  for (u32 tile = 0; tile < STAGES - 1; tile++) fetch_both(tile, tile);
  u32 full = 0, free = STAGES - 1;
  for (u32 tile = 0; tile < tiles; tile++) {
    copy_wait<STAGES - 2>();
    __syncthreads();
    // Takes the place of the tile before this one, which no warp reads any more.
    fetch_both(tile + STAGES - 1, free);
    add_stage<Shape, A_ACROSS, B_ACROSS>(sums, stages[full]);
    free = full;
    full = full + 1 == STAGES ? 0 : full + 1;
  }
  put_all(p, sums, m0, n0);
}

KERNEL(Small::THREADS) matmul_nt(const __grid_constant__ Matmul p) { run<Small, false, false>(p); }

KERNEL(Small::THREADS) matmul_nn(const __grid_constant__ Matmul p) { run<Small, false, true>(p); }

KERNEL(Small::THREADS) matmul_tn(const __grid_constant__ Matmul p) { run<Small, true, true>(p); }

KERNEL(Large::THREADS) matmul_large_nt(const __grid_constant__ Matmul p) { run<Large, false, false>(p); }

KERNEL(Large::THREADS) matmul_large_nn(const __grid_constant__ Matmul p) { run<Large, false, true>(p); }

// Unbounded it takes 130 registers on sm_90, and two blocks have room for 128.
KERNEL_BLOCKS(Large::THREADS, 2) matmul_large_tn(const __grid_constant__ Matmul p) { run<Large, true, true>(p); }
