// The one matrix product of the CPU backend: rows of FP32 times packed panels.
#pragma once

#include <cstdint>

#include "backend/cpu/memory.h"
#include "backend/cpu/pack.h"
#include "base/tensor.h"

namespace nibble {

// out[r][n - first_output] (+)= scale[n] * sum over k of x[r][k] * w[n][k] for the outputs n of the
// panels [first_panel, last_panel). Each is summed in rising k by one accumulator, however many
// rows and panels there are.
struct Product {
  const Panels& w;
  int64_t first_panel = 0;
  int64_t last_panel = 0;
  const float* const* x = nullptr;  // [rows] -> [w.cols]
  float* const* out = nullptr;      // [rows]
  int64_t rows = 0;
  int64_t first_output = 0;
  bool accumulate = false;
};

// `pairs`: this thread's memory for rows rounded to BF16, kept between calls.
using MultiplyFunction = void (*)(const Product& product, Scratch<uint32_t>& pairs);

// FP32 arithmetic for both panel formats.
void multiply_f32(const Product& product, Scratch<uint32_t>& pairs);

// BF16 dot products (AVX512-BF16) of the inputs rounded to BF16; BF16 panels only.
void multiply_bf16_avx512bf16(const Product& product, Scratch<uint32_t>& pairs);

// Floating-point operations of `rounds` rounds of BF16 dot products from registers alone.
double dot_registers_avx512bf16(int64_t rounds);

// Rows that a product should take at once, so that they stay in the L2 cache.
int64_t rows_per_block(int64_t cols);

// Row pointers of a tensor, for Product.
template <typename T>
T** row_pointers(const Tensor& tensor, Scratch<T*>& scratch) {
  T** rows = scratch.fit(size_t(tensor.rows));
  for (int64_t t = 0; t < tensor.rows; ++t) {
    rows[t] = static_cast<float*>(tensor.data) + t * tensor.stride;
  }
  return rows;
}

}  // namespace nibble
