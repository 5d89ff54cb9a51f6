// Attention forward, flash style: a block takes 64 queries of one head and goes over their keys; a warp has
// 16 queries. Scores stay in registers: the sums of q . k are, rounded to bf16, the left fragments of p . v
// as they lie. Blocks of keys that no query of the block sees are skipped.

#include "attention.h"
#include "attention.cuh"

#define NEGATIVE_INFINITY __int_as_float(0xff800000)

// Keys at a time: as many as registers have room for beside the output.
template <int D>
struct Shape {
  enum { KEYS = D == 256 ? 32 : 64 };
};

// Maximum or sum over the four lanes that share a row.
DEVICE float max_of_row(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

DEVICE float sum_of_row(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

// Two of the 16 rows of a warp belong to a thread: lane / 4 and 8 more.
template <int D>
struct Rows {
  float o[D / 8][4];
  float max[2], sum[2];
};

// Scales, caps and masks: `position` is the key position of the thread's first row, `key` the first key.
template <int KEYS>
DEVICE void mask(const Attention &p, float (&s)[KEYS / 8][4], int position, int key, int k_len) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int at = key + j * 8 + lane % 4 * 2 + i % 2, own = position + i / 2 * 8;
      float z = s[j][i] * p.scale;
      if (p.soft_cap != 0) z = p.soft_cap * tanhf(z / p.soft_cap);
      const bool seen = at <= own && at < k_len && (u32)(own - at) < p.window;
      s[j][i] = seen ? z : NEGATIVE_INFINITY;
    }
}

// s = e^(s - max); maximum, sum and o are brought up to these keys.
template <int D, int KEYS>
DEVICE void soften(Rows<D> &rows, float (&s)[KEYS / 8][4]) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float max = rows.max[r];
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) max = fmaxf(max, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
    max = max_of_row(max);
    // A row that has seen no key yet has nothing to shrink, and no maximum to subtract.
    const float finite = max == NEGATIVE_INFINITY ? 0 : max;
    const float shrink = expf(rows.max[r] - finite);
    float sum = 0;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; i++) {
        s[j][i] = expf(s[j][i] - finite);
        sum += s[j][i];
      }
    rows.max[r] = max;
    rows.sum[r] = rows.sum[r] * shrink + sum_of_row(sum);
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
      rows.o[d][2 * r] *= shrink;
      rows.o[d][2 * r + 1] *= shrink;
    }
  }
}

template <int D>
DEVICE void finish(const Attention &p, const Rows<D> &rows, u32 query, u32 head, const Segment &segment) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const u32 at = query + r * 8;
    if (at >= segment.q_len) continue;
    const u64 row = segment.q_start + at;
    u16 *o = (u16 *)p.o + row * p.o_stride + head * p.head_dim;
#pragma unroll
    for (int d = 0; d < D / 8; d++) {
      const u32 col = d * 8 + lane % 4 * 2;
      if (col < p.head_dim)
        *(u32 *)(o + col) = bf16_pair(rows.o[d][2 * r] / rows.sum[r], rows.o[d][2 * r + 1] / rows.sum[r]);
    }
    if (lane % 4 == 0) ((float *)p.lse)[row * p.lse_stride + head] = rows.max[r] + logf(rows.sum[r]);
  }
}

template <int D>
DEVICE void run(const Attention &p) {
  enum { KEYS = Shape<D>::KEYS };
  extern __shared__ __align__(128) u8 memory[];
  u16 *queries = (u16 *)memory, *keys = queries + OWN * D, *values = keys + KEYS * D;
  const Segment segment = ((const Segment *)p.segments)[blockIdx.z];
  const u32 first = blockIdx.x * OWN, head = blockIdx.y, kv_head = head / (p.heads / p.kv_heads);
  if (first >= segment.q_len) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u16 *q = (const u16 *)p.q + (u64)(segment.q_start + first) * p.q_stride + head * p.head_dim;
  fetch<D, OWN>(queries, q, p.q_stride, segment.q_len - first, p.head_dim);
  Rows<D> rows = {{}, {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, {0, 0}};
  const u32 query = first + warp * 16 + lane / 4, offset = segment.k_len - segment.q_len;
  const u32 last = min(first + OWN, segment.q_len) + offset;  // one more than the last key seen
  const u32 oldest = first + offset >= p.window ? first + offset - p.window + 1 : 0;
  for (u32 key = oldest / KEYS * KEYS; key < last; key += KEYS) {
    __syncthreads();
    const u64 row = segment.k_start + key;
    const u32 there = segment.k_len - key;
    fetch<D, KEYS>(keys, (const u16 *)p.k + row * p.k_stride + kv_head * p.head_dim, p.k_stride, there, p.head_dim);
    fetch<D, KEYS>(values, (const u16 *)p.v + row * p.v_stride + kv_head * p.head_dim, p.v_stride, there, p.head_dim);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    float s[KEYS / 8][4];
    products<D, KEYS>(s, queries, keys);
    mask<KEYS>(p, s, query + offset, key, segment.k_len);
    soften<D, KEYS>(rows, s);
    gather<D, KEYS, D>(rows.o, s, values, 0);
  }
  finish<D>(p, rows, query, head, segment);
}

KERNEL(THREADS) attention_64(const __grid_constant__ Attention p) { run<64>(p); }

KERNEL(THREADS) attention_128(const __grid_constant__ Attention p) { run<128>(p); }

KERNEL(THREADS) attention_256(const __grid_constant__ Attention p) { run<256>(p); }
