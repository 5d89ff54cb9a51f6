// Four-bit codes to bf16. A thread owns a block of 64 values: it scales the sixteen numbers of the book
// once, rounds them, and keeps the upper and the lower bytes of the results apart, eight registers in
// all. Then three byte permutations find four upper bytes, three the lower ones, and two put them
// together: no table in memory, and each value is rounded once, as the CPU rounds it.

#include "gpu.cuh"
#include "dequantize.h"

enum { THREADS = 128, BLOCK = 64, NESTED_BLOCK = 256 };

struct Table {
  u32 high[4], low[4];  // bytes of the entries 0 to 3, 4 to 7, 8 to 11, 12 to 15
};

DEVICE Table scaled(const float (&book)[16], float scale) {
  Table table;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const u32 first = bf16_pair(book[4 * i] * scale, book[4 * i + 1] * scale);
    const u32 second = bf16_pair(book[4 * i + 2] * scale, book[4 * i + 3] * scale);
    table.low[i] = permute(first, second, 0x6420);
    table.high[i] = permute(first, second, 0x7531);
  }
  return table;
}

// Four bytes by the four indices in the lower three bits of the nibbles of `low_bits`; `upper` picks, for
// each, the second half of the table.
DEVICE u32 look_up(const u32 (&bytes)[4], u32 low_bits, u32 upper) {
  return permute(permute(bytes[0], bytes[1], low_bits), permute(bytes[2], bytes[3], low_bits), upper);
}

// Four codes in 16 bits as four bf16. Files have the first value of a byte in its upper nibble, so the bytes
// that are found change places when they are put together.
DEVICE void decode(const Table &table, u32 low_bits, u32 upper, u32 &first, u32 &second) {
  const u32 high = look_up(table.high, low_bits, upper), low = look_up(table.low, low_bits, upper);
  first = permute(low, high, 0x4051);
  second = permute(low, high, 0x6273);
}

// Eight codes as eight bf16.
DEVICE uint4 decode(const Table &table, u32 codes) {
  // Bit 3 of a code adds 4 to the byte that the last permutation picks.
  const u32 low_bits = codes & 0x77777777u, upper = (codes >> 1 & 0x44444444u) | 0x32103210u;
  uint4 out;
  decode(table, low_bits, upper, out.x, out.y);
  decode(table, low_bits >> 16, upper >> 16, out.z, out.w);
  return out;
}

DEVICE float scale_of(const Dequantize &p, u64 block) {
  if (p.nested_absmax == 0) return ((const float *)p.absmax)[block];
  const float value = ((const float *)p.map)[((const u8 *)p.absmax)[block]];
  return __fadd_rn(__fmul_rn(value, ((const float *)p.nested_absmax)[block / NESTED_BLOCK]), p.offset);
}

KERNEL(THREADS) dequantize(const __grid_constant__ Dequantize p) {
  const u64 block = (u64)blockIdx.x * THREADS + threadIdx.x;
  if (block >= p.values / BLOCK) return;
  const uint4 *__restrict__ codes = (const uint4 *)p.codes + block * (BLOCK / 32);
  uint4 *__restrict__ out = (uint4 *)p.out + block * (BLOCK / 8);
  const Table table = scaled(p.book, scale_of(p, block));
#pragma unroll
  for (int half = 0; half < BLOCK / 32; half++) {
    const uint4 packed = codes[half];
    out[half * 4] = decode(table, packed.x);
    out[half * 4 + 1] = decode(table, packed.y);
    out[half * 4 + 2] = decode(table, packed.z);
    out[half * 4 + 3] = decode(table, packed.w);
  }
}
