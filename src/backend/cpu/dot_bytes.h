// Bytes of a register: dot products with a word of inputs that all lanes share (AVX512-VNNI), and
// tables (AVX512-VBMI). Written as instructions, so that files that do not require them may choose.
#pragma once

#include <cstdint>

#include "backend/cpu/intrinsics.h"

namespace nibble {

// sum + factors * word: four unsigned bytes of each lane times the four signed ones at `word`,
// which the instruction itself reads and spreads. g++ would spend an instruction of its own on
// that, and the fewer there are, the farther ahead of the sums a core reads the next weights.
// Volatile, so that sums stay side by side as they are written: each waits four cycles for itself.
__attribute__((always_inline, target("avx512f,avx512vnni"))) inline __m512i add_dot_bytes(
    __m512i sum, __m512i factors, const uint8_t* word) {
  using Word [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
  __asm__ volatile("vpdpbusd %2%{1to16%}, %1, %0"
                   : "+v"(sum)
                   : "v"(factors), "m"(*reinterpret_cast<const Word*>(word)));
  return sum;
}

// Looks up the low six bits of each byte.
__attribute__((always_inline, target("avx512f"))) inline __m512i look_up_six_bits(__m512i table,
                                                                                  __m512i bytes) {
  __m512i values;
  __asm__("vpermb %2, %1, %0" : "=v"(values) : "v"(bytes), "v"(table));
  return values;
}

}  // namespace nibble
