// A value of a stored row of floats (scales), whose bytes lie at any alignment.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "base/numbers.h"
#include "base/tensor.h"

namespace nibble {

// Value `i` of `row`, exactly; `dtype` is kF32, kBF16 or kF16.
inline float stored_float(const uint8_t* row, DType dtype, int64_t i) {
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, row + i * 4, 4);
    return value;
  }
  CHECK(dtype == DType::kBF16 || dtype == DType::kF16, "dtype %d", int(dtype));
  uint16_t bits;
  std::memcpy(&bits, row + i * 2, 2);
  return dtype == DType::kBF16 ? bf16_to_float(bits) : f16_to_float(bits);
}

}  // namespace nibble
