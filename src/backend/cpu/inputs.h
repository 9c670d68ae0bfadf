// The left side of a product as a kernel reads it.
//
//   kF32    the floats themselves
//   kBF16   rounded to BF16, padded by zeros to 32 values
//   kInt16  a line that begins with the row's scale (a float), then 16-bit integers,
//           x[k] = integer * scale, padded by zeros to 64 values. Within 8 values the order is
//           0 4 1 5 2 6 3 7: pairs as the 4-bit codes of a 32-bit word give them (pack.h)
//   kSplit16  the same line and integers, in bytes: integer = 256 high + low, both signed. Blocks
//           of 64 values: 64 high bytes, 64 low bytes, -16 times the sum of each 16 integers.
//           Within 8 values the order is 0 2 4 6 1 3 5 7: as the bytes of a word of codes give them
//
// The integer scale is the row's largest magnitude / 32639, which is the largest 256 high + low, so
// an input is off by at most half of it: by sqrt(K) / 65278 of the row's norm, less than BF16's
// rounding whatever the row. Sums of integers are exact in any order.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace nibble {

enum class InputFormat : uint8_t { kF32, kBF16, kInt16, kSplit16 };

inline constexpr int64_t kInt16Header = 64;   // bytes before the integers
inline constexpr int64_t kSplitColumns = 64;  // of a block
inline constexpr int64_t kSplitBlockBytes = 2 * kSplitColumns + 16;
inline constexpr int kSplitOffset = 16;  // what a factor may have been raised by, to be unsigned

// Of a row: what an integer stands for, and the inverse.
struct IntegerScale {
  float step = 0, inverse = 0;
};

// `bits`: of the row's largest magnitude.
inline IntegerScale integer_scale(uint32_t bits) {
  constexpr float kLargest = 32639;
  constexpr float kSmallest = 0x1p-100f;  // rows below it count as zeros: the scale has no inverse
  if (bits >= 0x7f800000u) return {.step = std::numeric_limits<float>::quiet_NaN()};
  const float largest = std::bit_cast<float>(bits);
  if (largest < kSmallest) return {};
  return {.step = largest / kLargest, .inverse = kLargest / largest};
}

struct InputRows {  // not owned
  const uint8_t* data = nullptr;
  int64_t stride_bytes = 0;

  const uint8_t* row(int64_t r) const { return data + r * stride_bytes; }
};

int64_t input_row_bytes(InputFormat format, int64_t cols);

// Of x[k], or of x[k] * factors[k] (never kF32) where there are factors.
void make_input_row(InputFormat format, const float* x, const float* factors, int64_t cols,
                    uint8_t* out);

// kSplit16.
void make_split16_row_avx2(const float* x, const float* factors, int64_t cols, uint8_t* out);
void make_split16_row_avx512vnni(const float* x, const float* factors, int64_t cols, uint8_t* out);

// |x| and |x - x'| of a row of integers x', kInt16 or kSplit16.
struct InputNorms {
  double norm = 0, error = 0;
};
InputNorms input_norms(InputFormat format, const float* x, const uint8_t* row, int64_t cols);

}  // namespace nibble
