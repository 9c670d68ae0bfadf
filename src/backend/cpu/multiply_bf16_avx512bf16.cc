// out = x w^T by BF16 dot products with FP32 sums (vdpbf16ps), inputs rounded to BF16.
//                                          x [M, K] rows, w BF16 panels of 16 outputs (pack.h)
//
// A line of a panel is one register and the second operand is a pair of inputs in all lanes. A tile
// is up to 6 rows by a group of 4 panels, at most 24 accumulators; K runs innermost and undivided,
// so an output's sum is the same for any M.
//
// Measured on 16 cores of a Xeon with AVX512-BF16: 70 rows 557 of 651 GFLOP/s (86%); one row of
// 3072x2048 490 GB/s from the caches.
#include "backend/cpu/multiply.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif

namespace nibble {
namespace {

constexpr int kMaxRows = 6;

template <int kRows, int kPanels>
__attribute__((noinline)) void multiply_tile(const Product& product, int64_t first_row, int64_t p) {
  const Panels& w = product.w;
  const int64_t num_pairs = (w.cols + 1) / 2;
  const uint8_t* line = w.panel(p);
  const int64_t stride = w.line_stride(p);
  const uint32_t* x[kRows];
  __m512 sum[kRows][kPanels];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    x[r] = reinterpret_cast<const uint32_t*>(product.x.row(first_row + r));
#pragma GCC unroll 8
    for (int i = 0; i < kPanels; ++i) sum[r][i] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < num_pairs; ++k, line += stride) {
    __m512bh factors[kPanels];
#pragma GCC unroll 8
    for (int i = 0; i < kPanels; ++i) {
      factors[i] = (__m512bh)_mm512_loadu_si512(line + i * kLineBytes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(int(x[r][k]));
#pragma GCC unroll 8
      for (int i = 0; i < kPanels; ++i) {
        sum[r][i] = _mm512_dpbf16_ps(sum[r][i], factors[i], pair);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kPanels; ++i) {
      const int64_t output = (p + i) * kPanelRows;
      const int64_t count = w.rows - output;
      const __mmask16 mask = count < kPanelRows ? __mmask16((1u << count) - 1) : __mmask16(0xffff);
      float* out = product.output(first_row + r, p + i);
      __m512 y = sum[r][i];
      if (w.row_scales != nullptr) y = _mm512_mul_ps(y, _mm512_loadu_ps(w.row_scales + output));
      if (product.accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
      _mm512_mask_storeu_ps(out, mask, y);
    }
  }
}

// The panels [first, last) of a group, in tiles as wide as registers allow.
template <int kRows, int kPanels = kGroupPanels>
void multiply_rows(const Product& product, int64_t first_row, int64_t first, int64_t last) {
  int64_t p = first;
  for (; p + kPanels <= last; p += kPanels) {
    multiply_tile<kRows, kPanels>(product, first_row, p);
  }
  if constexpr (kPanels > 1) {
    if (p < last) multiply_rows<kRows, kPanels / 2>(product, first_row, p, last);
  }
}

template <int kRows = kMaxRows>
void multiply_tile_rows(const Product& product, int64_t num_rows, int64_t first_row, int64_t first,
                        int64_t last) {
  if (num_rows == kRows) {
    multiply_rows<kRows>(product, first_row, first, last);
  } else if constexpr (kRows > 1) {
    multiply_tile_rows<kRows - 1>(product, num_rows, first_row, first, last);
  }
}

}  // namespace

void multiply_bf16_avx512bf16(const Product& product, Scratch<uint8_t>&) {
  if (product.rows == 0) return;
  const int64_t tiles = (product.rows + kMaxRows - 1) / kMaxRows;
  for (int64_t p = product.first_panel; p < product.last_panel;) {
    const int64_t last = std::min(p + product.w.left_in_group(p), product.last_panel);
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = product.rows * i / tiles, end = product.rows * (i + 1) / tiles;
      multiply_tile_rows(product, end - row, row, p, last);
    }
    p = last;
  }
}

double dot_registers_avx512bf16(int64_t rounds) {
  constexpr int kSums = 12;
  __m512 sum[kSums];
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) sum[i] = _mm512_set1_ps(float(i));
  const __m512bh factor = (__m512bh)_mm512_set1_epi32(0x3f003f00);  // pairs of 0.5
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], factor, factor);
  }
#pragma GCC unroll 12
  for (int i = 0; i < kSums; ++i) asm volatile("" : : "v"(sum[i]));
  return double(rounds) * kSums * 16 * 4;
}

}  // namespace nibble

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
