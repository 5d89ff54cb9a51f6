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

// Four codes, the first in the lowest nibble, as four bf16.
DEVICE void decode(const Table &table, u32 codes, u32 (&out)[2]) {
  // Bit 3 of a code adds 4 to the byte that the last permutation picks.
  const u32 upper = 0x3210u | (codes & 0x8888u) >> 1;
  const u32 high = look_up(table.high, codes & 0x7777u, upper);
  const u32 low = look_up(table.low, codes & 0x7777u, upper);
  out[0] = permute(low, high, 0x5140);
  out[1] = permute(low, high, 0x7362);
}

// The nibbles of each byte change places: files have the first value in the upper one.
DEVICE u32 in_order(u32 codes) { return (codes & 0x0f0f0f0fu) << 4 | (codes >> 4 & 0x0f0f0f0fu); }

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
    const u32 words[4] = {in_order(packed.x), in_order(packed.y), in_order(packed.z), in_order(packed.w)};
#pragma unroll
    for (int word = 0; word < 4; word++) {
      u32 first[2], second[2];
      decode(table, words[word] & 0xffffu, first);
      decode(table, words[word] >> 16, second);
      out[half * 4 + word] = make_uint4(first[0], first[1], second[0], second[1]);
    }
  }
}
