// out = x w^T of INT8 panels by dot products of bytes (vpdpbusd).
//                                          x [M, K] 16-bit rows in bytes, w INT8 panels of 16
//                                          outputs
//
// Factors are raised by 128 to be unsigned, and 128 times the inputs' sum is taken off again. As in
// multiply_int8.cc, integer sums over 512 columns are exact, and are added in FP32 in rising order.
//
// Measured on one core of an EPYC (Zen 4) guest by its own time, others computing beside, on a head
// of 317 MB: one row 28 GB/s where plain reading gives 31, 4 rows 24.5. Two cores of a Xeon
// (Sapphire Rapids) guest: one row 30 to 34 GB/s, without prefetching 21.
#include "backend/cpu/instruction_sets.h"
#include "backend/cpu/tiles.h"

#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "backend/cpu/dot_bytes.h"
#include "backend/cpu/intrinsics.h"

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")
#endif

namespace nibble {
namespace {

constexpr int kMaxRows = 8;
constexpr int64_t kExactBlocks = 8;  // of kSplitColumns
constexpr int kLineColumns = 4;
constexpr int kBlockLines = kSplitColumns / kLineColumns;

// -128 times the sum of the inputs of `count` blocks.
inline int32_t offset_of(const uint8_t* x, int64_t count) {
  __m128i sums = _mm_setzero_si128();
  for (int64_t b = 0; b < count; ++b, x += kSplitBlockBytes) {
    sums = _mm_add_epi32(sums, _mm_loadu_si128((const __m128i*)(x + 2 * kSplitColumns)));
  }
  const __m128i pairs = _mm_add_epi32(sums, _mm_shuffle_epi32(sums, 0x4e));
  const __m128i all = _mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0xb1));
  return _mm_cvtsi128_si32(all) * (128 / kSplitOffset);
}

template <int kRows, bool kPrefetch>
__attribute__((noinline)) void multiply_tile(const Product& product, int64_t first_row, int64_t p) {
  const Panels& w = product.w;
  const uint8_t* panel = w.panel(p);
  const __m512i raise = _mm512_set1_epi8(int8_t(0x80));
  const uint8_t* x[kRows];
  __m512 total[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    x[r] = product.x.row(first_row + r) + kInt16Header;
    total[r] = _mm512_setzero_ps();
  }
  const int64_t lines = w.lines - 2;
  const uint8_t* line = panel + 2 * kLineBytes;
  constexpr int64_t kExactLines = kExactBlocks * kBlockLines;
  for (int64_t first = 0; first < lines; first += kExactLines) {
    const int64_t last = std::min(lines, first + kExactLines);
    __m512i high[kRows], low[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      high[r] = _mm512_setzero_si512();
      low[r] = _mm512_set1_epi32(offset_of(x[r], (last - first + kBlockLines - 1) / kBlockLines));
    }
    for (int64_t i = first; i < last; i += kBlockLines) {
      const int64_t count = std::min<int64_t>(last - i, kBlockLines);
      for (int64_t j = 0; j < count; ++j, line += kLineBytes) {
        if (kPrefetch) prefetch_stream(line);
        const __m512i factors = _mm512_xor_si512(_mm512_load_si512(line), raise);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const uint8_t* words = x[r] + j * kLineColumns;
          high[r] = add_dot_bytes(high[r], factors, words);
          low[r] = add_dot_bytes(low[r], factors, words + kSplitColumns);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) x[r] += kSplitBlockBytes;
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(high[r], 8), low[r]);
      total[r] = _mm512_add_ps(total[r], _mm512_cvtepi32_ps(sum));
    }
  }
  const int64_t count = std::min<int64_t>(w.rows - p * kPanelRows, kPanelRows);
  const __mmask16 mask = __mmask16((1u << count) - 1);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    float row_scale;
    std::memcpy(&row_scale, product.x.row(first_row + r), sizeof(row_scale));
    float* out = product.output(first_row + r, p);
    __m512 y =
        _mm512_mul_ps(total[r], _mm512_mul_ps(_mm512_load_ps(panel), _mm512_set1_ps(row_scale)));
    if (product.accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
    _mm512_mask_storeu_ps(out, mask, y);
  }
}

}  // namespace

void multiply_int8_avx512vnni(const Product& product, Scratch<uint8_t>&) {
  // With one or two rows some machines do better without.
  static const bool looks_ahead = instruction_sets().looks_ahead;
  for_each_tile<kMaxRows>(product, [&](auto rows, int64_t first_row, int64_t p) {
    const bool is_read_once = product.rows == rows();
    if (is_read_once && (rows() > 2 || !looks_ahead)) {
      multiply_tile<rows(), true>(product, first_row, p);
    } else {
      multiply_tile<rows(), false>(product, first_row, p);
    }
  });
}

}  // namespace nibble

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
