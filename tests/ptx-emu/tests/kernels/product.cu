// y [m, n] = x [m, k] . w [n, k]^T: bf16 in, f32 out. Tiles of 64 x 64 with a depth of 64, two stages of
// cp.async, ldmatrix from swizzled shared memory, mma.sync. `scripts/compile_kernels.py` makes
// product.ptx of it.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short bf16;

struct Params {
  u64 x, w, y;
  u32 m, n, k;  // k a multiple of 64
};

enum { TILE = 64, DEPTH = 64, THREADS = 128 };

struct Shared {
  bf16 x[2][TILE * DEPTH];
  bf16 w[2][TILE * DEPTH];
};

// Where 16-byte chunk `chunk` of a row lies: no eight rows of one chunk share a bank.
static __device__ int swizzled(int row, int chunk) { return row * DEPTH + ((chunk ^ (row & 7)) << 3); }

static __device__ u32 shared_address(const void *p) { return (u32)__cvta_generic_to_shared(p); }

static __device__ void copy16(void *to, const void *from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}

static __device__ void load4(u32 (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

static __device__ void multiply(float (&d)[4], const u32 (&a)[4], const u32 *b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ void start(bf16 *to, const bf16 *from, u32 first, u32 rows, u32 k, u32 depth) {
  for (int i = threadIdx.x; i < TILE * DEPTH / 8; i += THREADS) {
    const int row = i / 8, chunk = i % 8;
    const bool there = first + row < rows;
    copy16(to + swizzled(row, chunk), from + (u64)(there ? first + row : 0) * k + depth + chunk * 8, there);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS) product(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) unsigned char memory[];
  Shared &s = *(Shared *)memory;
  const bf16 *__restrict__ x = (const bf16 *)p.x, *__restrict__ w = (const bf16 *)p.w;
  float *__restrict__ y = (float *)p.y;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
  const int wm = warp / 2 * 32, wn = warp % 2 * 32;
  float sums[2][4][4] = {};
  start(s.x[0], x, m0, p.m, p.k, 0);
  start(s.w[0], w, n0, p.n, p.k, 0);
  asm volatile("cp.async.commit_group;" ::: "memory");
  for (u32 depth = 0, stage = 0; depth < p.k; depth += DEPTH, stage ^= 1) {
    if (depth + DEPTH < p.k) {
      start(s.x[stage ^ 1], x, m0, p.m, p.k, depth + DEPTH);
      start(s.w[stage ^ 1], w, n0, p.n, p.k, depth + DEPTH);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
#pragma unroll
    for (int k = 0; k < DEPTH / 16; k++) {
      u32 a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        load4(a[i], s.x[stage] + swizzled(wm + i * 16 + lane % 16, k * 2 + lane / 16));
        load4(b[i], s.w[stage] + swizzled(wn + i * 16 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
      }
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) multiply(sums[i][j], a[i], b[j / 2] + j % 2 * 2);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int h = 0; h < 4; h++) {
        const u32 row = m0 + wm + i * 16 + lane / 4 + h / 2 * 8, col = n0 + wn + j * 8 + lane % 4 * 2 + h % 2;
        if (row < p.m && col < p.n) y[(u64)row * p.n + col] = sums[i][j][h];
      }
}
