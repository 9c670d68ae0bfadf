// The instruction set that the vector kernels were dispatched to.
#pragma once

#include <string>

namespace nibble {

std::string simd_target_name();

}  // namespace nibble
