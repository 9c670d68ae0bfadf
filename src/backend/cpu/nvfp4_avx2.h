// What products of NVFP4 panels share on machines with AVX2: a panel of 16 outputs is two vectors.
#pragma once

#if defined(__x86_64__)

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "backend/cpu/intrinsics.h"
#include "backend/cpu/multiply.h"

#define NIBBLE_AVX2 __attribute__((always_inline, target("avx2,fma"))) inline

namespace nibble::avx2 {

inline constexpr int kVecs = 2;  // of a line
inline constexpr int kVecBytes = kLineBytes / kVecs;
inline constexpr float kUnscaled = 0x1p120f;  // of the scales
inline constexpr float kRest = 0.5f;          // of the codes

NIBBLE_AVX2 __m256i set_word(const uint8_t* bytes) {
  int32_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return _mm256_set1_epi32(word);
}

// A vector, loaded once: g++ would rather repeat the load in every instruction that takes it.
NIBBLE_AVX2 __m256i load_vec(const void* vec) {
  __m256i bytes = _mm256_load_si256(static_cast<const __m256i*>(vec));
  __asm__("" : "+x"(bytes));
  return bytes;
}

// The low or the high nibbles of a vector of words, a byte each.
NIBBLE_AVX2 __m256i nibbles_of(__m256i words, bool high) {
  return _mm256_and_si256(high ? _mm256_srli_epi16(words, 4) : words, _mm256_set1_epi8(15));
}

// The scales of group `g`, of half the first line of a block: 2^-120 of their values.
NIBBLE_AVX2 __m256 block_scales(const uint8_t* half, int g) {
  const __m256i words = load_vec(half);
  const __m256i code = g < 3 ? _mm256_slli_epi32(words, 20 - 8 * g) : _mm256_srli_epi32(words, 4);
  return _mm256_castsi256_ps(_mm256_and_si256(code, _mm256_set1_epi32(0x7f << 20)));
}

// The outputs of row `row` of the product for panel p.
NIBBLE_AVX2 void store_outputs(const Product& product, int64_t row, int64_t p, const __m256* sums) {
  const float* tensor_scales = reinterpret_cast<const float*>(product.w.panel(p));
  float row_scale;
  std::memcpy(&row_scale, product.x.row(row), sizeof(row_scale));
  alignas(32) float y[kPanelRows];
  for (int v = 0; v < kVecs; ++v) {
    const __m256 scales =
        _mm256_mul_ps(_mm256_load_ps(tensor_scales + v * 8), _mm256_set1_ps(row_scale * kRest));
    const __m256 sum = _mm256_mul_ps(sums[v], _mm256_set1_ps(kUnscaled));
    _mm256_store_ps(y + v * 8, _mm256_mul_ps(sum, scales));
  }
  const int64_t count = std::min<int64_t>(product.w.rows - p * kPanelRows, kPanelRows);
  float* out = product.output(row, p);
  for (int64_t i = 0; i < count; ++i) out[i] = product.accumulate ? out[i] + y[i] : y[i];
}

}  // namespace nibble::avx2

#endif
