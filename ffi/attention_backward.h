/* The gradients of attention, from what its forward pass left. With P = e^(s - lse) and
 * delta = sum of d_o * o of each query and head, which attention_delta writes first:
 *   dv = P^T . d_o    dS = P * (d_o . v^T - delta) * (1 - (s / cap)^2)    dq = scale * dS . k
 *   dk = scale * dS^T . q, with dk and dv summed over the query heads that share a kv head.
 * attention_backward_q_* writes dq, attention_backward_kv_* dk and dv. */
#ifndef QLORA_ATTENTION_BACKWARD_H
#define QLORA_ATTENTION_BACKWARD_H

typedef struct AttentionBackward {
  /** `[queries, heads * head_dim]` bf16; rows of q, k, v and d_o at multiples of 16 bytes */
  unsigned long long q;
  /** `[keys, kv_heads * head_dim]` bf16 */
  unsigned long long k;
  /** `[keys, kv_heads * head_dim]` bf16 */
  unsigned long long v;
  /** `[queries, heads * head_dim]` bf16 */
  unsigned long long o;
  /** `[queries, heads * head_dim]` bf16 */
  unsigned long long d_o;
  /** `[queries, heads]` f32 */
  unsigned long long lse;
  /** `[queries, heads]` f32, dense */
  unsigned long long delta;
  /** Four u32 for each: first query, queries, first key, keys. */
  unsigned long long segments;
  /** `[queries, heads * head_dim]` bf16 */
  unsigned long long dq;
  /** `[keys, kv_heads * head_dim]` bf16 */
  unsigned long long dk;
  /** `[keys, kv_heads * head_dim]` bf16 */
  unsigned long long dv;
  /** Numbers from a row to the next. */
  unsigned long long q_stride, k_stride, v_stride, o_stride, d_o_stride, lse_stride;
  /** Numbers from a row to the next. */
  unsigned long long dq_stride, dk_stride, dv_stride;
  unsigned int heads, kv_heads;
  /** A multiple of 8, at most 256. */
  unsigned int head_dim;
  /** 0xffffffff for none. */
  unsigned int window;
  float scale;
  /** 0 for none. */
  float soft_cap;
} AttentionBackward;

#endif
