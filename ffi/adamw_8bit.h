/* One step of AdamW as in adamw.h, with moments in eight bits: blocks of 256 codes with one scale. A block is
 * decoded to f32, map[code] * scale, stepped, and encoded again: the scale is the largest magnitude, the code
 * that of the nearest entry of the map to moment / max(scale, smallest), a tie taking the lower one. */
#ifndef QLORA_ADAMW_8BIT_H
#define QLORA_ADAMW_8BIT_H

typedef struct Adamw8bit {
  /** `[len]` f32 */
  unsigned long long values;
  /** `[len]` f32 */
  unsigned long long grads;
  /** Codes of first moments `[len]`. */
  unsigned long long m;
  /** Codes of second moments `[len]`. */
  unsigned long long v;
  /** `[len / 256]` f32, rounded up */
  unsigned long long m_absmax;
  /** `[len / 256]` f32, rounded up */
  unsigned long long v_absmax;
  /** `[256]` f32, ascending: what the codes of m stand for. */
  unsigned long long signed_map;
  /** `[256]` f32, ascending: what the codes of v stand for. */
  unsigned long long unsigned_map;
  unsigned long long len;
  double beta1, beta2;
  /** Factor of every gradient. */
  double clip;
  /** 1 - rate * decay */
  double keep;
  /** rate / (1 - beta1^t) */
  double size;
  /** sqrt(1 - beta2^t) */
  double root;
  double epsilon;
  /** Smallest number that a moment is divided by. */
  float smallest;
} Adamw8bit;

#endif
