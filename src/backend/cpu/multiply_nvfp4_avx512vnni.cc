// out = x w^T of NVFP4 panels by dot products of bytes (vpdpbusd).
//                               x [M, K] 16-bit rows in bytes, w NVFP4 panels of 16 outputs
//
//   sum[n] = sum over groups g of 16 columns, in rising order, by one FP32 accumulator:
//            s[n][g] * (exact integer sum over the group of 2 code[n][k] * x[k])
//   out[n] = sum[n] * (tensor_scale[n] * (row scale / 2))
//
// A register holds 16 outputs by 8 columns of codes; its low and its high nibbles are looked up as
// bytes, raised by 16 to be unsigned, and each product adds four columns to its output's lane: once
// with the inputs' high bytes, once with the low ones. With AVX512-VBMI the table has all values of
// six bits, so that what lies above a nibble need not be cleared. An E4M3 scale becomes FP32 by a
// shift, 2^120 too small, as the sum then is. A tile is up to 12 rows by one panel; a panel is read
// once for all rows and stays in the L1 cache between tiles.
//
// Measured on one core of an EPYC (Zen 4) guest, from the L2 cache: one row 45.5 GB/s (40 without
// VBMI), 2 rows 28, 4 rows 14.3 GB/s, which is 203 of 235 GFLOP/s (86%), 12 rows 206 (88%). On a
// Xeon (Sapphire Rapids) guest: from the L2 cache 39.5, 24.6 and 11.7 GB/s; from memory, two cores,
// one row 31.5, without prefetching 17.
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

constexpr int kMaxRows = 12;
constexpr float kUnscaled = 0x1p120f;  // of the scales
constexpr float kRest = 0.5f;          // of the codes

// Twice the values of the codes, raised by kSplitOffset.
inline __m512i code_table() {
  return _mm512_broadcast_i32x4(
      _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
}

// The scales of group `g`, of the line of a block.
inline __m512 block_scales(__m512i line, int g) {
  const __m512i code =
      g < 3 ? _mm512_slli_epi32(line, unsigned(20 - 8 * g)) : _mm512_srli_epi32(line, 4);
  return _mm512_castsi512_ps(_mm512_and_si512(code, _mm512_set1_epi32(0x7f << 20)));
}

inline __m512i set_word(const uint8_t* bytes) {
  int32_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return _mm512_set1_epi32(word);
}

// A line, loaded once: g++ would rather repeat the load for each nibble.
inline __m512i load_line(const uint8_t* line) {
  __m512i bytes = _mm512_load_si512(line);
  __asm__("" : "+v"(bytes));
  return bytes;
}

// The 16 columns of a group: 4 bytes a lane each, as the input has them.
struct Factors {
  __m512i bytes[4];
};

template <bool kSixBits>
inline __m512i values_of(__m512i codes, __m512i table) {
  if (kSixBits) return look_up_six_bits(table, codes);
  return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
}

template <bool kSixBits>
inline Factors look_up(const uint8_t* lines, __m512i table) {
  const __m512i first = load_line(lines), second = load_line(lines + kLineBytes);
  return {{values_of<kSixBits>(first, table),
           values_of<kSixBits>(_mm512_srli_epi16(first, 4), table),
           values_of<kSixBits>(second, table),
           values_of<kSixBits>(_mm512_srli_epi16(second, 4), table)}};
}

// The exact sums of kGroups groups of a block of a row from group `g` on, their chains side by
// side.
template <int kGroups>
inline void sum_groups(const Factors* w, const uint8_t* x, int g, __m512i* sums) {
  __m512i high[kGroups], low[kGroups];
#pragma GCC unroll 2
  for (int j = 0; j < kGroups; ++j) {
    high[j] = _mm512_setzero_si512();
    low[j] = set_word(x + 2 * kSplitColumns + (g + j) * 4);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < kGroups; ++j) {
      const uint8_t* word = x + (g + j) * 16 + i * 4;
      high[j] = add_dot_bytes(high[j], w[j].bytes[i], word);
      low[j] = add_dot_bytes(low[j], w[j].bytes[i], word + kSplitColumns);
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < kGroups; ++j) {
    sums[j] = _mm512_add_epi32(_mm512_slli_epi32(high[j], 8), low[j]);
  }
}

template <bool kSixBits, int kRows, bool kPrefetch>
__attribute__((noinline)) void multiply_tile(const Product& product, int64_t first_row, int64_t p) {
  const Panels& w = product.w;
  const uint8_t* panel = w.panel(p);
  constexpr int kGroups = kRows == 1 ? 2 : 1;  // several rows are chains enough
  const __m512i table = code_table();
  const uint8_t* x[kRows];
  __m512 total[kRows];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    x[r] = product.x.row(first_row + r) + kInt16Header;
    total[r] = _mm512_setzero_ps();
  }
  const int64_t blocks = w.lines * kLineBytes / kNvfp4BlockBytes;
  const uint8_t* block = panel + kLineBytes;
  for (int64_t b = 0; b < blocks; ++b, block += kNvfp4BlockBytes) {
    if (kPrefetch) prefetch_stream(block);
    const __m512i scales = load_line(block);
#pragma GCC unroll 4
    for (int g = 0; g < 4; g += kGroups) {
      Factors factors[kGroups];
#pragma GCC unroll 2
      for (int j = 0; j < kGroups; ++j) {
        const uint8_t* lines = block + (1 + (g + j) * 2) * kLineBytes;
        if (kPrefetch) prefetch_stream(lines), prefetch_stream(lines + kLineBytes);
        factors[j] = look_up<kSixBits>(lines, table);
      }
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        __m512i sums[kGroups];
        sum_groups<kGroups>(factors, x[r] + b * kSplitBlockBytes, g, sums);
#pragma GCC unroll 2
        for (int j = 0; j < kGroups; ++j) {
          total[r] =
              _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[j]), block_scales(scales, g + j), total[r]);
        }
      }
    }
  }
  const int64_t count = w.rows - p * kPanelRows;
  const __mmask16 mask = count < kPanelRows ? __mmask16((1u << count) - 1) : __mmask16(0xffff);
  const __m512 tensor_scales = _mm512_load_ps(panel);
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    float row_scale;
    std::memcpy(&row_scale, product.x.row(first_row + r), sizeof(row_scale));
    float* out = product.output(first_row + r, p);
    const __m512 sum = _mm512_mul_ps(total[r], _mm512_set1_ps(kUnscaled));
    __m512 y = _mm512_mul_ps(sum, _mm512_mul_ps(tensor_scales, _mm512_set1_ps(row_scale * kRest)));
    if (product.accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
    _mm512_mask_storeu_ps(out, mask, y);
  }
}

template <bool kSixBits>
void multiply(const Product& product) {
  // With one row some machines do better without.
  static const bool looks_ahead = instruction_sets().looks_ahead;
  for_each_tile<kMaxRows>(product, [&](auto rows, int64_t first_row, int64_t p) {
    const bool is_read_once = product.rows == rows();
    if (is_read_once && (rows() > 1 || !looks_ahead)) {
      multiply_tile<kSixBits, rows(), true>(product, first_row, p);
    } else {
      multiply_tile<kSixBits, rows(), false>(product, first_row, p);
    }
  });
}

}  // namespace

void multiply_nvfp4_avx512vnni(const Product& product, Scratch<uint8_t>&) {
  multiply<false>(product);
}

void multiply_nvfp4_avx512vbmi(const Product& product, Scratch<uint8_t>&) {
  multiply<true>(product);
}

}  // namespace nibble

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
