// The matrix products of the CPU backend: rows made ready (inputs.h) times packed panels (pack.h).
#pragma once

#include <algorithm>
#include <cstdint>

#include "backend/cpu/inputs.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/pack.h"

namespace nibble {

// out[r * out_stride + n - first_output] (+)= scale[n] * sum over k of x[r][k] * w[n][k] for the
// outputs n of the panels [first_panel, last_panel). Each is summed in the same order, however many
// rows and panels there are.
struct Product {
  const Panels& w;
  int64_t first_panel = 0;
  int64_t last_panel = 0;
  InputRows x{};
  int64_t rows = 0;
  float* out = nullptr;
  int64_t out_stride = 0;
  int64_t first_output = 0;
  bool accumulate = false;

  float* output(int64_t row, int64_t panel) const {
    return out + row * out_stride + panel * kPanelRows - first_output;
  }
};

// Of panels that are read once: fetches the lines that follow `line` at two distances, far ahead
// into the L2 cache, which can wait for more lines at a time, and from there into the L1 cache.
inline void prefetch_stream(const void* line) {
  constexpr int kFarBytes = 57 * kNvfp4BlockBytes, kNearBytes = 7 * kNvfp4BlockBytes;
  __builtin_prefetch(static_cast<const uint8_t*>(line) + kFarBytes, 0, 2);
  __builtin_prefetch(static_cast<const uint8_t*>(line) + kNearBytes, 0, 3);
}

// The same for a machine that does best when it looks ahead to the L2 cache by itself: AMD's Zen 3.
inline void prefetch_near(const void* line) {
  constexpr int kBytes = 4 * kNvfp4BlockBytes;
  __builtin_prefetch(static_cast<const uint8_t*>(line) + kBytes, 0, 3);
}

// `scratch`: memory of the calling thread, kept between calls.
using MultiplyFunction = void (*)(const Product& product, Scratch<uint8_t>& scratch);

// A way to compute products of one panel format.
struct Kernel {
  InputFormat input = InputFormat::kF32;
  MultiplyFunction multiply = nullptr;
  int tile_rows = 12;               // a multiple of the rows of its tiles
  int64_t block_bytes = 384 << 10;  // of input rows that it should take at once, of the L2 cache
  int64_t least_rows = 24;          // of a wide one: a product of fewer is not worth unpacking for
  bool multiplies_tiles = false;    // of AMX

  // Input rows that it should take at once.
  int64_t block_rows(int64_t cols) const {
    const int64_t rows = std::min<int64_t>(block_bytes / input_row_bytes(input, cols), 256);
    return std::max<int64_t>(rows / tile_rows, 1) * tile_rows;
  }
};

// kBF16 panels by BF16 tiles (AMX).                                       inputs kBF16
void multiply_bf16_amx(const Product& product, Scratch<uint8_t>& scratch);

// kF32 and kBF16 panels in FP32 arithmetic.                               inputs kF32
void multiply_f32(const Product& product, Scratch<uint8_t>& scratch);

// kBF16 panels by BF16 dot products (AVX512-BF16).                        inputs kBF16
void multiply_bf16_avx512bf16(const Product& product, Scratch<uint8_t>& scratch);

// kNvfp4 panels by sums of integers; the same bits from all.              inputs kInt16
void multiply_nvfp4(const Product& product, Scratch<uint8_t>& scratch);
void multiply_nvfp4_wide_avx2(const Product& product, Scratch<uint8_t>& scratch);
//                                                                         inputs kSplit16
void multiply_nvfp4_avx2(const Product& product, Scratch<uint8_t>& scratch);
void multiply_nvfp4_avxvnni(const Product& product, Scratch<uint8_t>& scratch);
void multiply_nvfp4_avx512vnni(const Product& product, Scratch<uint8_t>& scratch);
void multiply_nvfp4_avx512vbmi(const Product& product, Scratch<uint8_t>& scratch);

// kNvfp4Columns panels in FP32 arithmetic.                                inputs kF32
void multiply_nvfp4_columns(const Product& product, Scratch<uint8_t>& scratch);

// kInt8 panels by sums of integers; the same bits from both.              inputs kInt16
void multiply_int8(const Product& product, Scratch<uint8_t>& scratch);
//                                                                         inputs kSplit16
void multiply_int8_avx512vnni(const Product& product, Scratch<uint8_t>& scratch);

// kNvfp4 panels by BF16 tiles (AMX).                                      inputs kBF16
void multiply_nvfp4_amx(const Product& product, Scratch<uint8_t>& scratch);

// Floating-point operations of `rounds` rounds of dot products from registers alone.
double dot_registers_avx512bf16(int64_t rounds);
double dot_registers_amx(int64_t rounds);

}  // namespace nibble
