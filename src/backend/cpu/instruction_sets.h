// Which of this machine's instruction sets the kernels use.
#pragma once

#include <string>

namespace nibble {

// The one that Highway dispatches vector kernels to.
std::string vector_target_name();

// Whether this machine has AVX512-BF16 and its dot products are faster than FP32 multiply-adds:
// AMD's do twice as many operations a cycle, Intel's fewer.
bool has_fast_avx512bf16();

}  // namespace nibble
