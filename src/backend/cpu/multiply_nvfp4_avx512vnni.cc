// out = x w^T of NVFP4 panels by dot products of bytes (vpdpbusd).
//                               x [M, K] 16-bit rows in bytes, w NVFP4 panels of 16 outputs
//
//   sum[n] = sum over groups g of 16 columns, in rising order, by one FP32 accumulator:
//            s[n][g] * (exact integer sum over the group of 2 code[n][k] * x[k])
//   out[n] = sum[n] * (tensor_scale[n] * (row scale / 2))
//
// A register holds 16 outputs by 8 columns of codes; its low and its high nibbles are looked up as
// bytes, raised by 16 to be unsigned, and each product adds four columns to its output's lane: once
// with the inputs' high bytes, once with the low ones. E4M3 scales become FP16 by a shift, 2^8 too
// small. A tile is up to 12 rows by one panel; a panel is read once for all rows and stays in the
// L1 cache between tiles.
//
// Measured on an EPYC (Zen 4) guest, from memory on both cores: one row 1.0 of plain reading while
// both are on one die (33 GB/s), 0.80 to 0.84 while they are on two (48 GB/s) and others compute
// beside; 4 rows 24 GB/s. From the L2 cache on one core: one row 37.8 GB/s, 4 rows 13.6 GB/s, which
// is 193 of 235 GFLOP/s (82%), 12 rows 202 GFLOP/s (86%).
#include "backend/cpu/tiles.h"

#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "backend/cpu/dot_bytes.h"
#include "backend/cpu/intrinsics.h"

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif

namespace nibble {
namespace {

constexpr int kMaxRows = 12;
constexpr float kRest = 128;  // 2^8 of the scales / 2 of the codes

// Twice the values of the codes, raised by kSplitOffset.
inline __m512i code_table() {
  return _mm512_broadcast_i32x4(
      _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4));
}

inline __m512 block_scales(const uint8_t* e4m3) {
  const __m256i halves = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)e4m3));
  return _mm512_cvtph_ps(_mm256_slli_epi16(halves, 7));
}

inline __m512i set_word(const uint8_t* bytes) {
  int32_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return _mm512_set1_epi32(word);
}

// The 16 columns of a group: 4 bytes a lane each, as the input has them.
struct Factors {
  __m512i bytes[4];
};

inline Factors look_up(const uint8_t* lines, __m512i table) {
  const __m512i low_nibble = _mm512_set1_epi8(15);
  const __m512i first = _mm512_load_si512(lines), second = _mm512_load_si512(lines + kLineBytes);
  const auto values = [&](__m512i codes) {
    return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, low_nibble));
  };
  return {{values(first), values(_mm512_srli_epi16(first, 4)), values(second),
           values(_mm512_srli_epi16(second, 4))}};
}

// The exact sum of group `g` of a block of a row.
inline __m512i sum_group(const Factors& w, const uint8_t* x, int g) {
  __m512i high = _mm512_setzero_si512();
  __m512i low = set_word(x + 2 * kSplitColumns + g * 4);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    high = add_dot_bytes(high, w.bytes[i], x + g * 16 + i * 4);
    low = add_dot_bytes(low, w.bytes[i], x + kSplitColumns + g * 16 + i * 4);
  }
  return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
}

// `kStream`: the panel is read once. One row leaves it to the machine, which looks far enough ahead
// by itself and whose prefetching ours would hinder.
template <int kRows, bool kStream>
__attribute__((noinline)) void multiply_tile(const Product& product, int64_t first_row, int64_t p) {
  const Panels& w = product.w;
  const uint8_t* panel = w.panel(p);
  constexpr bool kPrefetch = kStream && kRows > 1;
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
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const uint8_t* lines = block + (1 + g * 2) * kLineBytes;
      if (kPrefetch) prefetch_stream(lines), prefetch_stream(lines + kLineBytes);
      const Factors factors = look_up(lines, table);
      const __m512 scale = block_scales(block + g * kPanelRows);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
        const __m512i sum = sum_group(factors, x[r] + b * kSplitBlockBytes, g);
        total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), scale, total[r]);
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
    __m512 y =
        _mm512_mul_ps(total[r], _mm512_mul_ps(tensor_scales, _mm512_set1_ps(row_scale * kRest)));
    if (product.accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
    _mm512_mask_storeu_ps(out, mask, y);
  }
}

}  // namespace

void multiply_nvfp4_avx512vnni(const Product& product, Scratch<uint8_t>&) {
  for_each_tile<kMaxRows>(product, [&](auto rows, int64_t first_row, int64_t p) {
    if (product.rows == rows()) {
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
