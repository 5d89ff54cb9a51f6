/* out[i] = table[tokens[i]] * scale, rounded once. */
#ifndef QLORA_EMBEDDING_H
#define QLORA_EMBEDDING_H

typedef struct Embedding {
  /** `[vocabulary, cols]` bf16 */
  unsigned long long table;
  /** `[rows]` u32, each below the vocabulary */
  unsigned long long tokens;
  /** `[rows, cols]` bf16 */
  unsigned long long out;
  /** Numbers from a row to the next. */
  unsigned long long table_stride, out_stride;
  unsigned int cols;
  float scale;
} Embedding;

#endif
