// Rows of kSplit16 (inputs.h). One pass over a row finds the largest magnitude, another rounds 64
// values at a time: a row takes about as long as reading it from the L2 cache twice.
#include "backend/cpu/inputs.h"

#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "backend/cpu/intrinsics.h"

#if defined(__clang__)
#pragma clang attribute push(                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,sse4.1"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

namespace nibble {
namespace {

struct NoFactors {
  __m512 multiply(__m512 x, int64_t, __mmask16) const { return x; }
};

struct FloatFactors {
  const float* factors;

  __m512 multiply(__m512 x, int64_t k, __mmask16 mask) const {
    return _mm512_mul_ps(x, _mm512_maskz_loadu_ps(mask, factors + k));
  }
};

// 16 values, zeros from `cols` on.
template <bool kWhole, typename Factors>
inline __m512 load_values(const float* x, const Factors& factors, int64_t k, int64_t cols) {
  if (kWhole) return factors.multiply(_mm512_loadu_ps(x + k), k, 0xffff);
  const int64_t count = std::clamp<int64_t>(cols - k, 0, 16);
  const __mmask16 mask = __mmask16((1u << count) - 1);
  return factors.multiply(_mm512_maskz_loadu_ps(mask, x + k), k, mask);
}

template <bool kWhole, typename Factors>
inline __m512i largest_of_block(const float* x, const Factors& factors, int64_t k, int64_t cols) {
  __m512i most = _mm512_setzero_si512();
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    const __m512 value = load_values<kWhole>(x, factors, k + 16 * g, cols);
    most = _mm512_max_epu32(most, _mm512_castps_si512(_mm512_abs_ps(value)));
  }
  return most;
}

// Bits of the largest magnitude, a NaN's above all.
template <typename Factors>
inline uint32_t largest_bits(const float* x, const Factors& factors, int64_t cols) {
  __m512i most = _mm512_setzero_si512();
  int64_t k = 0;
  for (; k + kSplitColumns <= cols; k += kSplitColumns) {
    most = _mm512_max_epu32(most, largest_of_block<true>(x, factors, k, cols));
  }
  if (k < cols) most = _mm512_max_epu32(most, largest_of_block<false>(x, factors, k, cols));
  return _mm512_reduce_max_epu32(most);
}

// The high and low bytes of 16 integers in the format's order.
inline void store_group(__m512i integers, int g, uint8_t* block) {
  const __m128i order = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  const __m512i raised = _mm512_add_epi32(integers, _mm512_set1_epi32(128));
  const __m128i high = _mm512_cvtepi32_epi8(_mm512_srai_epi32(raised, 8));
  const __m128i low = _mm512_cvtepi32_epi8(integers);
  _mm_storeu_si128((__m128i*)(block + g * 16), _mm_shuffle_epi8(high, order));
  _mm_storeu_si128((__m128i*)(block + kSplitColumns + g * 16), _mm_shuffle_epi8(low, order));
}

// -16 times the sums of four vectors.
inline __m128i offsets_of(const __m512i* integers) {
  const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(integers[0], integers[1]),
                                     _mm512_unpackhi_epi32(integers[0], integers[1]));
  const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(integers[2], integers[3]),
                                     _mm512_unpackhi_epi32(integers[2], integers[3]));
  const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  const __m256i d = _mm256_add_epi32(_mm512_castsi512_si256(c), _mm512_extracti64x4_epi64(c, 1));
  const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(d), _mm256_extracti128_si256(d, 1));
  return _mm_mullo_epi32(sums, _mm_set1_epi32(-kSplitOffset));
}

template <bool kWhole, typename Factors>
inline void make_block(const float* x, const Factors& factors, int64_t k, int64_t cols,
                       __m512 inverse, uint8_t* block) {
  __m512i integers[4];
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    const __m512 value = load_values<kWhole>(x, factors, k + 16 * g, cols);
    integers[g] = _mm512_cvtps_epi32(_mm512_mul_ps(value, inverse));
    store_group(integers[g], g, block);
  }
  _mm_storeu_si128((__m128i*)(block + 2 * kSplitColumns), offsets_of(integers));
}

template <typename Factors>
void make_row(const float* x, const Factors& factors, int64_t cols, uint8_t* out) {
  const IntegerScale scale = integer_scale(largest_bits(x, factors, cols));
  std::memcpy(out, &scale.step, sizeof(scale.step));
  const __m512 inverse = _mm512_set1_ps(scale.inverse);
  uint8_t* block = out + kInt16Header;
  int64_t k = 0;
  for (; k + kSplitColumns <= cols; k += kSplitColumns, block += kSplitBlockBytes) {
    make_block<true>(x, factors, k, cols, inverse, block);
  }
  if (k < cols) make_block<false>(x, factors, k, cols, inverse, block);
}

}  // namespace

void make_split16_row_avx512vnni(const float* x, const float* factors, int64_t cols, uint8_t* out) {
  if (factors == nullptr) return make_row(x, NoFactors(), cols, out);
  make_row(x, FloatFactors{factors}, cols, out);
}

}  // namespace nibble

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
