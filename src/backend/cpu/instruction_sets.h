// Which of this machine's instruction sets the kernels use.
#pragma once

#include <string>

namespace nibble {

// The one that Highway dispatches vector kernels to.
std::string vector_target_name();

// Whether the kernels of multiply_bf16_avx512bf16.cc can run.
bool has_avx512bf16();

}  // namespace nibble
