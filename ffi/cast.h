/* A matrix from bf16 or f32 to bf16 or f32, rounded to nearest even. */
#ifndef QLORA_CAST_H
#define QLORA_CAST_H

typedef struct Cast {
  /** `[rows, cols]` */
  unsigned long long from;
  /** `[rows, cols]` */
  unsigned long long to;
  unsigned long long rows, cols;
  /** Numbers from a row to the next. */
  unsigned long long from_stride, to_stride;
  /** Whether they are f32, and not bf16. */
  unsigned int from_wide, to_wide;
} Cast;

#endif
