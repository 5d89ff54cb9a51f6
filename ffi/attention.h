/* Causal attention over packed records. z = scale * q . k, s = z or cap * tanh(z / cap) over the keys that a
 * query sees, lse = ln(sum e^s), o = sum e^(s - lse) * v. Query i of a segment stands at key position
 * k_len - q_len + i and sees the keys up to there, less than `window` back. */
#ifndef QLORA_ATTENTION_H
#define QLORA_ATTENTION_H

typedef struct Attention {
  /** `[queries, heads * head_dim]` bf16; rows of all four at multiples of 16 bytes */
  unsigned long long q;
  /** `[keys, kv_heads * head_dim]` bf16 */
  unsigned long long k;
  /** `[keys, kv_heads * head_dim]` bf16 */
  unsigned long long v;
  /** `[queries, heads * head_dim]` bf16 */
  unsigned long long o;
  /** `[queries, heads]` f32 */
  unsigned long long lse;
  /** Four u32 for each: first query, queries, first key, keys. */
  unsigned long long segments;
  /** Numbers from a row to the next. */
  unsigned long long q_stride, k_stride, v_stride, o_stride, lse_stride;
  unsigned int heads, kv_heads;
  /** A multiple of 8, at most 256. */
  unsigned int head_dim;
  /** 0xffffffff for none. */
  unsigned int window;
  float scale;
  /** 0 for none. */
  float soft_cap;
} Attention;

#endif
