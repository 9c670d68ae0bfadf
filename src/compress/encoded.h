// Encoded: a group of linears in the form in which it is stored.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "quant/weight.h"

namespace nibble {

enum class Precision : uint8_t { kKept, kFp8, kNvfp4 };

struct Encoded {
  Precision precision = Precision::kNvfp4;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<uint8_t> codes{};         // kNvfp4: 2 a byte; kFp8: E4M3; row-major
  std::vector<uint8_t> scales{};        // kNvfp4: E4M3, one per 16 columns
  float tensor_scale = 1.0f;            // multiplies all
  float input_amax = 0.0f;              // largest magnitude of the input; 0: was not observed
  std::vector<uint16_t> input_scale{};  // BF16 [cols], multiplies the input first; empty: none

  // Room for the codes and scales of the shape.
  static Encoded of(Precision precision, int64_t rows, int64_t cols);
  // As a part of a weight, pointing into this.
  WeightPart part() const;
  // Row `r` as floats, input_scale left out.
  void decode_row(int64_t r, float* out) const;
};

}  // namespace nibble
