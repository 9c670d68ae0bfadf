// Dot products of bytes (AVX512-VNNI) with a word of inputs that all lanes share.
#pragma once

#include <cstdint>

#include "backend/cpu/intrinsics.h"

namespace nibble {

// sum + factors * word: four unsigned bytes of each lane times the four signed ones at `word`,
// which the instruction itself reads and spreads. g++ would spend an instruction of its own on
// that, and the fewer there are, the farther ahead of the sums a core reads the next weights.
__attribute__((always_inline, target("avx512f,avx512vnni"))) inline __m512i add_dot_bytes(
    __m512i sum, __m512i factors, const uint8_t* word) {
  using Word [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
  __asm__("vpdpbusd %2%{1to16%}, %1, %0"
          : "+v"(sum)
          : "v"(factors), "m"(*reinterpret_cast<const Word*>(word)));
  return sum;
}

}  // namespace nibble
