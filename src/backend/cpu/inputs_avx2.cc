// Rows of kSplit16 (inputs.h) on machines with AVX2 and no AVX-512. One pass over a row finds the
// largest magnitude, another rounds 64 values at a time.
#include "backend/cpu/inputs.h"

#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "backend/cpu/intrinsics.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace nibble {
namespace {

// x[k] * factors[k], or x[k] where there are no factors.
template <bool kScaled>
inline __m256 load_values(const float* x, const float* factors, int64_t k) {
  const __m256 value = _mm256_loadu_ps(x + k);
  return kScaled ? _mm256_mul_ps(value, _mm256_loadu_ps(factors + k)) : value;
}

inline __m256i magnitude_bits(__m256 value) {
  return _mm256_and_si256(_mm256_castps_si256(value), _mm256_set1_epi32(0x7fffffff));
}

// The high bytes of 16 integers in the format's order, and their low ones; their sums in 8 parts.
inline __m256i store_group(__m256i first, __m256i second, int g, uint8_t* block) {
  const __m256i order = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  const __m256i integers =
      _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), _MM_SHUFFLE(3, 1, 2, 0));
  const __m256i high = _mm256_srai_epi16(_mm256_add_epi16(integers, _mm256_set1_epi16(128)), 8);
  const __m256i low = _mm256_srai_epi16(_mm256_slli_epi16(integers, 8), 8);
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_packs_epi16(high, low), order);
  const __m256i sorted = _mm256_permute4x64_epi64(bytes, _MM_SHUFFLE(3, 1, 2, 0));
  _mm_storeu_si128((__m128i*)(block + g * 16), _mm256_castsi256_si128(sorted));
  _mm_storeu_si128((__m128i*)(block + kSplitColumns + g * 16), _mm256_extracti128_si256(sorted, 1));
  return _mm256_madd_epi16(integers, _mm256_set1_epi16(1));
}

// -16 times the sums of four groups.
inline __m128i offsets_of(const __m256i* sums) {
  const __m256i all =
      _mm256_hadd_epi32(_mm256_hadd_epi32(sums[0], sums[1]), _mm256_hadd_epi32(sums[2], sums[3]));
  const __m128i total =
      _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  return _mm_mullo_epi32(total, _mm_set1_epi32(-kSplitOffset));
}

template <bool kScaled>
inline void make_block(const float* x, const float* factors, float inverse, uint8_t* block) {
  const __m256 steps = _mm256_set1_ps(inverse);
  __m256i sums[4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    const __m256 first = load_values<kScaled>(x, factors, 16 * g);
    const __m256 second = load_values<kScaled>(x, factors, 16 * g + 8);
    sums[g] = store_group(_mm256_cvtps_epi32(_mm256_mul_ps(first, steps)),
                          _mm256_cvtps_epi32(_mm256_mul_ps(second, steps)), g, block);
  }
  _mm_storeu_si128((__m128i*)(block + 2 * kSplitColumns), offsets_of(sums));
}

template <bool kScaled>
void make_row(const float* x, const float* factors, int64_t cols, uint8_t* out) {
  // What is left of the last block, with zeros.
  const int64_t whole = cols / kSplitColumns * kSplitColumns;
  alignas(32) float rest[kSplitColumns] = {};
  for (int64_t k = whole; k < cols; ++k) rest[k - whole] = kScaled ? x[k] * factors[k] : x[k];

  __m256i most = _mm256_setzero_si256();
  for (int64_t k = 0; k < whole; k += 8) {
    most = _mm256_max_epu32(most, magnitude_bits(load_values<kScaled>(x, factors, k)));
  }
  for (int64_t k = 0; k < kSplitColumns; k += 8) {
    most = _mm256_max_epu32(most, magnitude_bits(_mm256_load_ps(rest + k)));
  }
  alignas(32) uint32_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), most);
  const IntegerScale scale = integer_scale(*std::max_element(lanes, lanes + 8));

  std::memcpy(out, &scale.step, sizeof(scale.step));
  uint8_t* block = out + kInt16Header;
  for (int64_t k = 0; k < whole; k += kSplitColumns, block += kSplitBlockBytes) {
    make_block<kScaled>(x + k, factors + (kScaled ? k : 0), scale.inverse, block);
  }
  if (whole < cols) make_block<false>(rest, nullptr, scale.inverse, block);
}

}  // namespace

void make_split16_row_avx2(const float* x, const float* factors, int64_t cols, uint8_t* out) {
  if (factors == nullptr) return make_row<false>(x, nullptr, cols, out);
  make_row<true>(x, factors, cols, out);
}

}  // namespace nibble

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
