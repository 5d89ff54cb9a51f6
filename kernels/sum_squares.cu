// The sum of squares, by which gradients are clipped: in f64 and in a fixed order, so that clipping is
// the same in every run. Pieces are summed by a block each, the sums of pieces by one more.

#include "gpu.cuh"
#include "sum_squares.h"

enum { THREADS = 256, PIECE = 16384 };

// Sums of threads, added up pairwise; the result is in the first.
DEVICE void add_up(double (&sums)[THREADS]) {
  for (int distance = THREADS / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (threadIdx.x < distance) sums[threadIdx.x] += sums[threadIdx.x + distance];
  }
}

KERNEL(THREADS) sum_squares(const __grid_constant__ SumSquares p) {
  extern __shared__ double memory[];
  double(&sums)[THREADS] = *(double(*)[THREADS])memory;
  const float *__restrict__ x = (const float *)p.x;
  const u64 first = (u64)blockIdx.x * PIECE, end = min(first + PIECE, p.len);
  double sum = 0;
  for (u64 i = first + threadIdx.x; i < end; i += THREADS) sum += (double)x[i] * x[i];
  sums[threadIdx.x] = sum;
  add_up(sums);
  if (threadIdx.x == 0) ((double *)p.partial)[blockIdx.x] = sums[0];
}

KERNEL(THREADS) sum_squares_total(const __grid_constant__ SumSquares p) {
  extern __shared__ double memory[];
  double(&sums)[THREADS] = *(double(*)[THREADS])memory;
  const double *__restrict__ partial = (const double *)p.partial;
  const u64 pieces = (p.len + PIECE - 1) / PIECE;
  double sum = 0;
  for (u64 i = threadIdx.x; i < pieces; i += THREADS) sum += partial[i];
  sums[threadIdx.x] = sum;
  add_up(sums);
  if (threadIdx.x == 0) *(double *)p.out = sums[0];
}
