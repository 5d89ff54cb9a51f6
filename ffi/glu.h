/* Gated units: h = act(gate) * up with gate and up side by side. glu writes h to out; glu_backward reads dh
 * from h, writes the gradients of gate and up side by side to out, and h in the place of dh. */
#ifndef QLORA_GLU_H
#define QLORA_GLU_H

typedef struct Glu {
  /** `[rows, 2 * width]` bf16 */
  unsigned long long gate_up;
  /** `[rows, width]` bf16: h, or dh and then h */
  unsigned long long h;
  /** `[rows, 2 * width]` bf16 backward */
  unsigned long long d_gate_up;
  /** Numbers from a row to the next. */
  unsigned long long gate_up_stride, h_stride, d_gate_up_stride;
  unsigned int width;
  /** 0: x * sigmoid(x); 1: GELU by tanh; 2: GELU. */
  unsigned int activation;
} Glu;

#endif
