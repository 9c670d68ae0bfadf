// out = x w^T of NVFP4 panels by BF16 tiles (AMX).
//                                          x [M, K] BF16 rows, w NVFP4 panels of 16 outputs
//
// Two panels at a time are decoded to BF16, code times block scale being exact, into a strip of
// K / 2 lines each: line k holds the pair (2k, 2k + 1) of 16 outputs, as tiles want their second
// operand. Then 2 x 2 tiles of 16 rows by 16 outputs are summed over K, 32 columns a step,
// undivided; fewer rows make smaller tiles with the same sums. The tensor's scale multiplies the
// sum.
//
// For products of many rows only (Backend::wide_rows): decoding costs as much as 50 rows.
//
// Measured on one core of a 16-core Xeon guest (peak 2,931 GFLOP/s from registers): 256 rows 1,114
// GFLOP/s (38%), 64 rows 780, 32 rows 541; 16-bit integers reach 151 there.
#include "backend/cpu/multiply.h"

#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include "backend/cpu/intrinsics.h"

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace nibble {
namespace {

constexpr int kTileRows = 16;
constexpr int64_t kStepColumns = 32;
constexpr int64_t kTileBytes = kTileRows * kLineBytes;

// Sums: tiles 0..3 (row tile, panel); rows: 4, 5; factors: 6, 7.
struct TileConfig {
  uint8_t palette = 1, start = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The intrinsic declares only 8 bytes of its operand as read.
void configure_tiles(int first_rows, int second_rows) {
  TileConfig config;
  for (int t = 0; t < 8; ++t) config.row_bytes[t] = kLineBytes, config.rows[t] = kTileRows;
  config.rows[0] = config.rows[1] = config.rows[4] = uint8_t(first_rows);
  config.rows[2] = config.rows[3] = config.rows[5] = uint8_t(std::max(1, second_rows));
  asm volatile("ldtilecfg %0" : : "m"(config));
}

// The intrinsic does not say that it reads memory, so that what was written there may be dropped.
template <int kTile>
inline void load_tile(const uint8_t* rows, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(rows), "r"(stride_bytes), "i"(kTile)
               : "memory");
}

// The panel's codes times their block scales as pairs of BF16: a line for two columns.
void decode_panel(const Panels& w, int64_t p, uint8_t* out) {
  alignas(64) static constexpr float kValues[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,
                                                    4.0f,  6.0f,  -0.0f, -0.5f, -1.0f, -1.5f,
                                                    -2.0f, -3.0f, -4.0f, -6.0f};
  const __m512 table = _mm512_load_ps(kValues);
  const __m512i high_half = _mm512_set1_epi32(int(0xffff0000u));
  const int64_t blocks = w.lines * kLineBytes / kNvfp4BlockBytes;
  const uint8_t* block = w.panel(p) + kLineBytes;
  for (int64_t b = 0; b < blocks; ++b, block += kNvfp4BlockBytes) {
    const __m512i scales = _mm512_load_si512(block);
    for (int g = 0; g < 4; ++g) {
      const __m512i code = _mm512_and_si512(_mm512_srlv_epi32(scales, _mm512_set1_epi32(8 * g)),
                                            _mm512_set1_epi32(0x7f));
      const __m512 scale =
          _mm512_mul_ps(_mm512_castsi512_ps(_mm512_slli_epi32(code, 20)), _mm512_set1_ps(0x1p120f));
      for (int half = 0; half < 2; ++half) {
        __m512i word = _mm512_load_si512(block + (1 + g * 2 + half) * kLineBytes);
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; ++pair, out += kLineBytes) {
          const __m512 even = _mm512_mul_ps(_mm512_permutexvar_ps(word, table), scale);
          word = _mm512_srli_epi32(word, 4);
          const __m512 odd = _mm512_mul_ps(_mm512_permutexvar_ps(word, table), scale);
          word = _mm512_srli_epi32(word, 4);
          const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even), 16);
          const __m512i high = _mm512_and_si512(_mm512_castps_si512(odd), high_half);
          _mm512_store_si512(out, _mm512_or_si512(low, high));
        }
      }
    }
  }
  asm volatile("" : : : "memory");  // else g++ 12 takes this for a function without effects
}

}  // namespace
}  // namespace nibble

namespace nibble {
namespace {

// Sums of two tiles of rows (the second may be empty) and one or two panels, into `sums`: tiles of
// 16 x 16 floats in the order of the registers.
template <bool kTwoTiles, bool kTwoPanels>
__attribute__((noinline)) void sum_tiles(const InputRows& x, int64_t row, const uint8_t* strips,
                                         int64_t strip_bytes, int64_t steps, float* sums) {
  const uint8_t* first = x.row(row);
  const uint8_t* second = x.row(row + kTileRows);
  _tile_zero(0);
  if (kTwoPanels) _tile_zero(1);
  if (kTwoTiles) _tile_zero(2);
  if (kTwoTiles && kTwoPanels) _tile_zero(3);
  for (int64_t k = 0; k < steps; ++k) {
    load_tile<4>(first + k * kLineBytes, x.stride_bytes);
    load_tile<6>(strips + k * kTileBytes, kLineBytes);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwoPanels) {
      load_tile<7>(strips + strip_bytes + k * kTileBytes, kLineBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kTwoTiles) {
      load_tile<5>(second + k * kLineBytes, x.stride_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (kTwoPanels) _tile_dpbf16ps(3, 5, 7);
    }
  }
  constexpr int kFloats = kTileRows * kPanelRows;
  _tile_stored(0, sums, kLineBytes);
  if (kTwoPanels) _tile_stored(1, sums + kFloats, kLineBytes);
  if (kTwoTiles) _tile_stored(2, sums + 2 * kFloats, kLineBytes);
  if (kTwoTiles && kTwoPanels) _tile_stored(3, sums + 3 * kFloats, kLineBytes);
}

void store_tile(const Product& product, int64_t row, int64_t rows, int64_t p, const float* sums) {
  const int64_t count = product.w.rows - p * kPanelRows;
  const __mmask16 mask = count < kPanelRows ? __mmask16((1u << count) - 1) : __mmask16(0xffff);
  const __m512 scales = _mm512_load_ps(product.w.panel(p));
  for (int64_t r = 0; r < rows; ++r) {
    float* out = product.output(row + r, p);
    __m512 y = _mm512_mul_ps(_mm512_load_ps(sums + r * kPanelRows), scales);
    if (product.accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
    _mm512_mask_storeu_ps(out, mask, y);
  }
}

// Up to 32 rows by the panels p and, with two panels, p + 1.
void multiply_block(const Product& product, int64_t row, int64_t rows, int64_t p, bool two_panels,
                    const uint8_t* strips, int64_t strip_bytes, float* sums) {
  const int64_t first = std::min<int64_t>(rows, kTileRows), second = rows - first;
  const int64_t steps = (product.w.cols + kStepColumns - 1) / kStepColumns;
  if (second > 0) {
    two_panels ? sum_tiles<true, true>(product.x, row, strips, strip_bytes, steps, sums)
               : sum_tiles<true, false>(product.x, row, strips, strip_bytes, steps, sums);
  } else {
    two_panels ? sum_tiles<false, true>(product.x, row, strips, strip_bytes, steps, sums)
               : sum_tiles<false, false>(product.x, row, strips, strip_bytes, steps, sums);
  }
  constexpr int kFloats = kTileRows * kPanelRows;
  for (int panel = 0; panel < (two_panels ? 2 : 1); ++panel) {
    store_tile(product, row, first, p + panel, sums + panel * kFloats);
    if (second > 0) {
      store_tile(product, row + kTileRows, second, p + panel, sums + (2 + panel) * kFloats);
    }
  }
}

}  // namespace

void multiply_nvfp4_amx(const Product& product, Scratch<uint8_t>& scratch) {
  if (product.rows == 0) return;
  const int64_t blocks = product.w.lines * kLineBytes / kNvfp4BlockBytes;
  const int64_t strip_bytes = blocks * (kNvfp4Columns / 2) * kLineBytes;
  constexpr int64_t kSumBytes = 4 * kTileBytes;
  uint8_t* strips = scratch.fit(size_t(2 * strip_bytes + kSumBytes));
  float* sums = reinterpret_cast<float*>(strips + 2 * strip_bytes);
  const int64_t whole = product.rows / (2 * kTileRows) * (2 * kTileRows);
  const int64_t rest = product.rows - whole;
  const int rest_first = int(std::min<int64_t>(rest, kTileRows)),
            rest_second = int(rest) - rest_first;
  for (int64_t p = product.first_panel; p < product.last_panel; p += 2) {
    const bool two = p + 1 < product.last_panel;
    decode_panel(product.w, p, strips);
    if (two) decode_panel(product.w, p + 1, strips + strip_bytes);
    if (whole > 0) {
      configure_tiles(kTileRows, kTileRows);
      for (int64_t row = 0; row < whole; row += 2 * kTileRows) {
        multiply_block(product, row, 2 * kTileRows, p, two, strips, strip_bytes, sums);
      }
    }
    if (rest > 0) {
      configure_tiles(rest_first, rest_second);
      multiply_block(product, whole, rest, p, two, strips, strip_bytes, sums);
    }
  }
  _tile_release();
}

double dot_registers_amx(int64_t rounds) {
  configure_tiles(kTileRows, kTileRows);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t round = 0; round < rounds; ++round) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return double(rounds) * 4 * kTileRows * kPanelRows * kStepColumns * 2;
}

}  // namespace nibble

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
