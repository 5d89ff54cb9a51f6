/* The loss of each row of logits for its target, and the gradient in the memory of the logits.
 *
 * y = z, or cap * tanh(z / cap); m = max y; loss = ln(sum e^(y - m)) + m - y[target];
 * gradient = (e^(y - m) / sum - [target]) * scale * (1 - (y / cap)^2), in bf16 from the start of the row. */
#ifndef QLORA_CROSS_ENTROPY_H
#define QLORA_CROSS_ENTROPY_H

typedef struct CrossEntropy {
  /** `[rows, vocabulary]` f32 */
  unsigned long long logits;
  /** `[rows]` u32, each below the vocabulary */
  unsigned long long targets;
  /** `[rows]` f32 */
  unsigned long long losses;
  /** Numbers from a row to the next. */
  unsigned long long stride;
  unsigned int vocabulary;
  /** 0 for none. */
  float soft_cap;
  float scale;
  /** Whether the logits are replaced by their gradient. */
  unsigned int has_gradient;
} CrossEntropy;

#endif
