// Attention backward, without atomics and with the scores made again: one kernel owns queries and goes over
// the keys that they see, the other owns keys and goes over the queries that see them. A block has 64 rows
// of its own, a warp 16 of them; the other side comes a few rows at a time. What belongs to a pair of rows
// is a sum in registers whose rounded form is, as it lies, the left fragment of the product that follows.

#include "attention_backward.h"
#include "attention.cuh"

template <int D>
struct Shape {
  enum {
    // Rows of the other side at a time: as many as registers have room for beside the gradients.
    KEYS = D == 64 ? 64 : 32,
    QUERIES = D == 64 ? 32 : 16,
    // Columns of a gradient whose sums fit into registers; a wider head is gone through once for each.
    COLUMNS = D == 256 ? 128 : D,
  };
};

// What a pair of a query and a key comes to.
struct Pair {
  float weight, slope;
};

DEVICE Pair pair_of(const AttentionBackward &p, float product, float lse, int position, int key) {
  float s = product * p.scale, slope = p.scale;
  if (p.soft_cap != 0) {
    const float t = tanhf(s / p.soft_cap);
    s = p.soft_cap * t;
    slope *= 1 - t * t;
  }
  const bool seen = key <= position && (u32)(position - key) < p.window;
  return {seen ? expf(s - lse) : 0, slope};
}

// Writes the sums of a warp to rows `row` and `row` + 8 of those that there are, from column `first` on.
template <int COLUMNS>
DEVICE void put(u16 *to, u64 stride, const float (&sums)[COLUMNS / 8][4], u32 row, u32 rows, u32 first, u32 head_dim) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    if (row + r * 8 >= rows) continue;
    u16 *at = to + (row + r * 8) * stride;
#pragma unroll
    for (int d = 0; d < COLUMNS / 8; d++) {
      const u32 col = first + d * 8 + lane % 4 * 2;
      if (col < head_dim) *(u32 *)(at + col) = bf16_pair(sums[d][2 * r], sums[d][2 * r + 1]);
    }
  }
}

DEVICE const u16 *rows_of(u64 numbers, u64 stride, u64 row, u32 head, u32 head_dim) {
  return (const u16 *)numbers + row * stride + head * head_dim;
}

// Sums of d_o * o: a warp for each query and head.
KERNEL(32) attention_delta(const __grid_constant__ AttentionBackward p) {
  const u32 row = blockIdx.x, head = blockIdx.y;
  const u16 *__restrict__ o = rows_of(p.o, p.o_stride, row, head, p.head_dim);
  const u16 *__restrict__ d_o = rows_of(p.d_o, p.d_o_stride, row, head, p.head_dim);
  float sum = 0;
  for (u32 i = threadIdx.x; i < p.head_dim; i += 32) sum += bf16_low(o[i]) * bf16_low(d_o[i]);
  sum = sum_of_warp(sum);
  if (threadIdx.x == 0) ((float *)p.delta)[(u64)row * p.heads + head] = sum;
}

template <int D>
DEVICE void of_queries(const AttentionBackward &p) {
  enum { OTHERS = Shape<D>::KEYS, COLUMNS = Shape<D>::COLUMNS };
  extern __shared__ __align__(128) u8 memory[];
  u16 *q = (u16 *)memory, *d_o = q + OWN * D, *k = d_o + OWN * D, *v = k + OTHERS * D;
  const Segment segment = ((const Segment *)p.segments)[blockIdx.z];
  const u32 first = blockIdx.x * OWN, head = blockIdx.y, kv_head = head / (p.heads / p.kv_heads);
  if (first >= segment.q_len) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 own = first + warp * 16 + lane / 4, offset = segment.k_len - segment.q_len;
  const u64 row = segment.q_start + first;
  fetch<D, OWN>(q, rows_of(p.q, p.q_stride, row, head, p.head_dim), p.q_stride, segment.q_len - first, p.head_dim);
  fetch<D, OWN>(d_o, rows_of(p.d_o, p.d_o_stride, row, head, p.head_dim), p.d_o_stride, segment.q_len - first,
                p.head_dim);
  float lse[2], delta[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const u64 query = segment.q_start + min(own + r * 8, segment.q_len - 1);
    lse[r] = ((const float *)p.lse)[query * p.lse_stride + head];
    delta[r] = ((const float *)p.delta)[query * p.heads + head];
  }
  const u32 last = min(first + OWN, segment.q_len) + offset;  // one more than the last key seen
  const u32 oldest = first + offset >= p.window ? first + offset - p.window + 1 : 0;
  for (u32 column = 0; column < p.head_dim; column += COLUMNS) {
    float dq[COLUMNS / 8][4] = {};
    for (u32 key = oldest / OTHERS * OTHERS; key < last; key += OTHERS) {
      __syncthreads();
      const u64 from = segment.k_start + key;
      const u32 there = segment.k_len - key;
      fetch<D, OTHERS>(k, rows_of(p.k, p.k_stride, from, kv_head, p.head_dim), p.k_stride, there, p.head_dim);
      fetch<D, OTHERS>(v, rows_of(p.v, p.v_stride, from, kv_head, p.head_dim), p.v_stride, there, p.head_dim);
      copy_commit();
      copy_wait<0>();
      __syncthreads();
      float s[OTHERS / 8][4], ds[OTHERS / 8][4];
      products<D, OTHERS>(s, q, k);
      products<D, OTHERS>(ds, d_o, v);
#pragma unroll
      for (int j = 0; j < OTHERS / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int at = key + j * 8 + lane % 4 * 2 + i % 2, position = own + i / 2 * 8 + offset;
          const Pair pair = pair_of(p, s[j][i], lse[i / 2], position, at);
          ds[j][i] = pair.weight * (ds[j][i] - delta[i / 2]) * pair.slope;
        }
      gather<D, OTHERS, COLUMNS>(dq, ds, k, column);
    }
    u16 *to = (u16 *)p.dq + segment.q_start * p.dq_stride + head * p.head_dim;
    put<COLUMNS>(to, p.dq_stride, dq, own, segment.q_len, column, p.head_dim);
  }
}

template <int D>
DEVICE void of_keys(const AttentionBackward &p) {
  enum { OTHERS = Shape<D>::QUERIES, COLUMNS = Shape<D>::COLUMNS };
  extern __shared__ __align__(128) u8 memory[];
  u16 *k = (u16 *)memory, *v = k + OWN * D, *q = v + OWN * D, *d_o = q + OTHERS * D;
  float *lse = (float *)(d_o + OTHERS * D), *delta = lse + OTHERS;
  const Segment segment = ((const Segment *)p.segments)[blockIdx.z];
  const u32 first = blockIdx.x * OWN, kv_head = blockIdx.y, group = p.heads / p.kv_heads;
  if (first >= segment.k_len) return;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u32 own = first + warp * 16 + lane / 4, offset = segment.k_len - segment.q_len;
  const u64 row = segment.k_start + first;
  fetch<D, OWN>(k, rows_of(p.k, p.k_stride, row, kv_head, p.head_dim), p.k_stride, segment.k_len - first, p.head_dim);
  fetch<D, OWN>(v, rows_of(p.v, p.v_stride, row, kv_head, p.head_dim), p.v_stride, segment.k_len - first, p.head_dim);
  copy_commit();
  // The queries that see any of these keys: the first, and one more than the last.
  const u32 from = first > offset ? first - offset : 0;
  const u64 beyond = (u64)first + OWN - 1 + p.window;
  const u32 end = beyond > offset ? (u32)min(beyond - offset, (u64)segment.q_len) : 0;
  for (u32 column = 0; column < p.head_dim; column += COLUMNS) {
    float dk[COLUMNS / 8][4] = {}, dv[COLUMNS / 8][4] = {};
    for (u32 head = kv_head * group; head < (kv_head + 1) * group; head++) {
      for (u32 query = from / OTHERS * OTHERS; query < end; query += OTHERS) {
        __syncthreads();
        const u64 at = segment.q_start + query;
        const u32 there = segment.q_len - query;
        fetch<D, OTHERS>(q, rows_of(p.q, p.q_stride, at, head, p.head_dim), p.q_stride, there, p.head_dim);
        fetch<D, OTHERS>(d_o, rows_of(p.d_o, p.d_o_stride, at, head, p.head_dim), p.d_o_stride, there, p.head_dim);
        copy_commit();
        if (threadIdx.x < OTHERS) {
          const u64 own_row = at + min((u32)threadIdx.x, there - 1);
          lse[threadIdx.x] = ((const float *)p.lse)[own_row * p.lse_stride + head];
          delta[threadIdx.x] = ((const float *)p.delta)[own_row * p.heads + head];
        }
        copy_wait<0>();
        __syncthreads();
        float s[OTHERS / 8][4], ds[OTHERS / 8][4];
        products<D, OTHERS>(s, k, q);
        products<D, OTHERS>(ds, v, d_o);
#pragma unroll
        for (int j = 0; j < OTHERS / 8; j++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const u32 other = j * 8 + lane % 4 * 2 + i % 2;
            const int position = query + other + offset, key = own + i / 2 * 8;
            const Pair pair = pair_of(p, s[j][i], lse[other], position, key);
            const float weight = other < there ? pair.weight : 0;
            s[j][i] = weight;
            ds[j][i] = weight * (ds[j][i] - delta[other]) * pair.slope;
          }
        gather<D, OTHERS, COLUMNS>(dv, s, d_o, column);
        gather<D, OTHERS, COLUMNS>(dk, ds, q, column);
      }
    }
    u16 *to = (u16 *)p.dk + segment.k_start * p.dk_stride + kv_head * p.head_dim;
    put<COLUMNS>(to, p.dk_stride, dk, own, segment.k_len, column, p.head_dim);
    to = (u16 *)p.dv + segment.k_start * p.dv_stride + kv_head * p.head_dim;
    put<COLUMNS>(to, p.dv_stride, dv, own, segment.k_len, column, p.head_dim);
  }
  // Keys that no query sees have gone through no round.
  copy_wait<0>();
}

KERNEL(THREADS) attention_backward_q_64(const __grid_constant__ AttentionBackward p) { of_queries<64>(p); }

KERNEL(THREADS) attention_backward_q_128(const __grid_constant__ AttentionBackward p) { of_queries<128>(p); }

KERNEL(THREADS) attention_backward_q_256(const __grid_constant__ AttentionBackward p) { of_queries<256>(p); }

KERNEL(THREADS) attention_backward_kv_64(const __grid_constant__ AttentionBackward p) { of_keys<64>(p); }

KERNEL(THREADS) attention_backward_kv_128(const __grid_constant__ AttentionBackward p) { of_keys<128>(p); }

KERNEL(THREADS) attention_backward_kv_256(const __grid_constant__ AttentionBackward p) { of_keys<256>(p); }
