// out = x w^T of NVFP4 panels by products of bytes, on machines with AVX2 and no AVX-512.
//                               x [M, K] 16-bit rows in bytes, w NVFP4 panels of 16 outputs
//
// The sums of multiply_nvfp4_avx512vnni.cc, bit for bit, a panel being two registers of eight
// outputs. Without dot products of bytes (AVX-VNNI) a product adds two columns in 16 bits
// (vpmaddubsw), and the sums of an output's 16 columns stay in them: two lanes of eight columns, at
// most 8 * 28 * 128 < 2^15. The ones of the inputs' high bytes are weighed by 256 when both become
// 32 bits. Both registers share each word of inputs. A tile is up to kMaxRows rows by one panel; a
// panel is read once for all rows and stays in the L1 cache between tiles.
//
// Measured on one core of an EPYC (Zen 3) guest with AVX2, from the L2 cache: one row 40 Gweights/s
// (22.6 GB/s), 4 rows 100 of 95 GFLOP/s that FP32 multiply-adds reach.
#include "backend/cpu/tiles.h"

#if defined(__x86_64__)

#include "backend/cpu/nvfp4_avx2.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace nibble {
namespace {

using namespace avx2;

constexpr int kMaxRows = 6;

// Twice the values of the codes, raised by kSplitOffset.
inline __m256i code_table() {
  return _mm256_broadcastsi128_si256(
      _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
}

// Four columns of eight outputs: those of the low nibbles of a word, or of the high ones.
inline __m256i look_up(const uint8_t* half, bool high) {
  return _mm256_shuffle_epi8(code_table(), nibbles_of(load_vec(half), high));
}

// Products of factors with the high and with the low bytes of a row's inputs, over one group.
template <bool kDotBytes>
struct ByteSums;

// The first product needs no sum to be added to. Sums stay in the order in which they are written:
// g++ would add them in pairs, and spill.
template <>
struct ByteSums<false> {
  __m256i high, low;

  void add(__m256i factors, __m256i x_high, __m256i x_low, bool first) {
    const __m256i more_high = _mm256_maddubs_epi16(factors, x_high);
    const __m256i more_low = _mm256_maddubs_epi16(factors, x_low);
    high = first ? more_high : _mm256_add_epi16(high, more_high);
    low = first ? more_low : _mm256_add_epi16(low, more_low);
    __asm__ volatile("" : "+x"(high), "+x"(low));
  }
  __m256i total(__m256i offset) const {
    const __m256i highs = _mm256_madd_epi16(high, _mm256_set1_epi16(256));
    const __m256i lows = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
    return _mm256_add_epi32(_mm256_add_epi32(highs, offset), lows);
  }
};

template <>
struct ByteSums<true> {
  __m256i high, low;

  static __m256i dot(__m256i sum, __m256i factors, __m256i x) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(factors), "x"(x));
    return sum;
  }
  void add(__m256i factors, __m256i x_high, __m256i x_low, bool first) {
    high = dot(first ? _mm256_setzero_si256() : high, factors, x_high);
    low = dot(first ? _mm256_setzero_si256() : low, factors, x_low);
  }
  __m256i total(__m256i offset) const {
    return _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, 8), offset), low);
  }
};

// The exact sums of a group of a row, whose inputs begin at `x` and whose offset lies at `offset`.
// factors(i, v): of four columns and vector v.
template <bool kDotBytes, typename Factors>
inline void sum_group(const uint8_t* x, const uint8_t* offset, const Factors& factors,
                      __m256* sums) {
  ByteSums<kDotBytes> sum[kVecs];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m256i high = set_word(x + i * 4), low = set_word(x + kSplitColumns + i * 4);
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) sum[v].add(factors(i, v), high, low, i == 0);
  }
  const __m256i raised = set_word(offset);
#pragma GCC unroll 2
  for (int v = 0; v < kVecs; ++v) sums[v] = _mm256_cvtepi32_ps(sum[v].total(raised));
}

// One group of 16 columns: lines `lines` of codes, the scales' line `scales`.
template <bool kDotBytes, int kRows>
inline void add_group(const uint8_t* lines, const uint8_t* scales, int g, const uint8_t* const* x,
                      int64_t at, __m256 (*total)[kVecs]) {
  const auto factors_at = [&](int i, int v) {
    return look_up(lines + i / 2 * kLineBytes + v * kVecBytes, i % 2 != 0);
  };
  __m256i kept[4][kVecs];  // of several rows
  if (kRows > 1) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) kept[i][v] = factors_at(i, v);
    }
  }
  const auto factors = [&](int i, int v) { return kRows > 1 ? kept[i][v] : factors_at(i, v); };
  __m256 scale[kVecs];
#pragma GCC unroll 2
  for (int v = 0; v < kVecs; ++v) scale[v] = block_scales(scales + v * kVecBytes, g);
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    __m256 sums[kVecs];
    const uint8_t* block = x[r] + at;
    sum_group<kDotBytes>(block + g * 16, block + 2 * kSplitColumns + g * 4, factors, sums);
#pragma GCC unroll 2
    for (int v = 0; v < kVecs; ++v) total[r][v] = _mm256_fmadd_ps(sums[v], scale[v], total[r][v]);
  }
}

// `kStream`: the panel is read once.
template <bool kDotBytes, int kRows, bool kStream>
__attribute__((noinline)) void multiply_tile(const Product& product, int64_t first_row, int64_t p) {
  const Panels& w = product.w;
  const uint8_t* panel = w.panel(p);
  const uint8_t* x[kRows];
  __m256 total[kRows][kVecs];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    x[r] = product.x.row(first_row + r) + kInt16Header;
    for (int v = 0; v < kVecs; ++v) total[r][v] = _mm256_setzero_ps();
  }
  const int64_t blocks = w.lines * kLineBytes / kNvfp4BlockBytes;
  const uint8_t* block = panel + kLineBytes;
  for (int64_t b = 0; b < blocks; ++b, block += kNvfp4BlockBytes) {
    if (kStream) prefetch_near(block);
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const uint8_t* lines = block + (1 + g * 2) * kLineBytes;
      if (kStream) prefetch_near(lines), prefetch_near(lines + kLineBytes);
      add_group<kDotBytes, kRows>(lines, block, g, x, b * kSplitBlockBytes, total);
    }
  }
  for (int r = 0; r < kRows; ++r) store_outputs(product, first_row + r, p, total[r]);
}

template <bool kDotBytes>
void multiply(const Product& product) {
  for_each_tile<kMaxRows>(product, [&](auto rows, int64_t first_row, int64_t p) {
    if (product.rows == rows()) {
      multiply_tile<kDotBytes, rows(), true>(product, first_row, p);
    } else {
      multiply_tile<kDotBytes, rows(), false>(product, first_row, p);
    }
  });
}

}  // namespace

void multiply_nvfp4_avx2(const Product& product, Scratch<uint8_t>&) {
  multiply<false>(product);
}

void multiply_nvfp4_avxvnni(const Product& product, Scratch<uint8_t>&) {
  multiply<true>(product);
}

}  // namespace nibble

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
