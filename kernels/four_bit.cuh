// Four-bit codes as bf16. The sixteen numbers of the book are scaled once and rounded, and the upper and the
// lower bytes of the results kept apart, eight registers in all. Then three byte permutations find four upper
// bytes, three the lower ones, and two put them together: no table in memory, and each value is rounded once,
// as the CPU rounds it.
#pragma once

#include "gpu.cuh"

enum { BLOCK = 64, NESTED_BLOCK = 256 };

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

template <class Params>
DEVICE float scale_of(const Params &p, u64 block) {
  if (p.nested_absmax == 0) return ((const float *)p.absmax)[block];
  const float value = ((const float *)p.map)[((const u8 *)p.absmax)[block]];
  return __fadd_rn(__fmul_rn(value, ((const float *)p.nested_absmax)[block / NESTED_BLOCK]), p.offset);
}
