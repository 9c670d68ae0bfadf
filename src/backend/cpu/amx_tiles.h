// Products by BF16 tiles (AMX): rows of pairs times lines of 16 outputs by a pair each, summed in
// FP32. The order of a sum does not depend on which rows are in a tile.
//
// Tiles 0 .. 3 are sums (row tile, panel), 4 and 5 rows, 6 and 7 lines.
#pragma once

#if defined(__x86_64__)

#include <algorithm>
#include <cstdint>

#include "backend/cpu/intrinsics.h"
#include "backend/cpu/multiply.h"

#define NIBBLE_AMX_TARGET \
  target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define NIBBLE_AMX __attribute__((always_inline, NIBBLE_AMX_TARGET)) inline
#define NIBBLE_AMX_CALLED __attribute__((noinline, NIBBLE_AMX_TARGET))

namespace nibble::amx {

inline constexpr int kTileRows = 16;
inline constexpr int64_t kStepColumns = 32;
inline constexpr int64_t kTileBytes = kTileRows * kLineBytes;

struct TileConfig {
  uint8_t palette = 1, start = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// For up to two tiles of rows; the second may be empty, then it is not to be used. The intrinsic
// declares only 8 bytes of its operand as read.
NIBBLE_AMX void configure_tiles(int64_t rows) {
  const int64_t first = std::min<int64_t>(rows, kTileRows);
  const int64_t second = std::clamp<int64_t>(rows - kTileRows, 1, kTileRows);
  TileConfig config;
  for (int t = 0; t < 8; ++t) config.row_bytes[t] = kLineBytes, config.rows[t] = kTileRows;
  config.rows[0] = config.rows[1] = config.rows[4] = uint8_t(first);
  config.rows[2] = config.rows[3] = config.rows[5] = uint8_t(second);
  asm volatile("ldtilecfg %0" : : "m"(config));
}

// The intrinsic does not say that it reads memory, so that what was written there may be dropped.
template <int kTile>
NIBBLE_AMX void load_tile(const void* rows, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2"
               :
               : "r"(rows), "r"(stride_bytes), "i"(kTile)
               : "memory");
}

// One or two panels of lines.
struct Lines {
  const uint8_t* data = nullptr;
  int64_t panel_bytes = 0;  // to the next panel

  const uint8_t* step(int64_t k) const { return data + k * kTileBytes; }
};

// Adds the products of `steps` steps of 32 columns. `rows`: of the first tile; those of the second
// follow.
template <bool kTwoTiles, bool kTwoPanels>
NIBBLE_AMX void add_products(const uint8_t* rows, int64_t stride_bytes, const Lines& lines,
                             int64_t steps) {
  const uint8_t* const more_rows = rows + kTileRows * stride_bytes;
  for (int64_t k = 0; k < steps; ++k) {
    load_tile<4>(rows + k * kLineBytes, stride_bytes);
    load_tile<6>(lines.step(k), kLineBytes);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwoPanels) {
      load_tile<7>(lines.step(k) + lines.panel_bytes, kLineBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (kTwoTiles) {
      load_tile<5>(more_rows + k * kLineBytes, stride_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if (kTwoPanels) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

template <bool kTwoTiles, bool kTwoPanels>
NIBBLE_AMX void clear_sums() {
  _tile_zero(0);
  if (kTwoPanels) _tile_zero(1);
  if (kTwoTiles) _tile_zero(2);
  if (kTwoTiles && kTwoPanels) _tile_zero(3);
}

// Sums as they lie in memory: rows `stride_bytes` apart, panels beside each other.
template <bool kTwoTiles, bool kTwoPanels>
NIBBLE_AMX void load_sums(const float* sums, int64_t stride_bytes) {
  const auto* more = reinterpret_cast<const uint8_t*>(sums) + kTileRows * stride_bytes;
  load_tile<0>(sums, stride_bytes);
  if (kTwoPanels) load_tile<1>(sums + kPanelRows, stride_bytes);
  if (kTwoTiles) load_tile<2>(more, stride_bytes);
  if (kTwoTiles && kTwoPanels) load_tile<3>(more + kLineBytes, stride_bytes);
}
template <bool kTwoTiles, bool kTwoPanels>
NIBBLE_AMX void store_sums(float* sums, int64_t stride_bytes) {
  auto* more = reinterpret_cast<uint8_t*>(sums) + kTileRows * stride_bytes;
  _tile_stored(0, sums, stride_bytes);
  if (kTwoPanels) _tile_stored(1, sums + kPanelRows, stride_bytes);
  if (kTwoTiles) _tile_stored(2, more, stride_bytes);
  if (kTwoTiles && kTwoPanels) _tile_stored(3, more + kLineBytes, stride_bytes);
}

// Of a product's inputs and one or two panels: adds the products of `steps` steps from `first` on
// to the sums of up to 32 rows, or begins them.
template <bool kTwoTiles, bool kTwoPanels>
NIBBLE_AMX_CALLED void add_steps(const uint8_t* rows, int64_t stride_bytes, const Lines& lines,
                                 int64_t first, int64_t steps, float* sums) {
  if (first == 0) {
    clear_sums<kTwoTiles, kTwoPanels>();
  } else {
    load_sums<kTwoTiles, kTwoPanels>(sums, 2 * kLineBytes);
  }
  add_products<kTwoTiles, kTwoPanels>(rows + first * kLineBytes, stride_bytes, lines, steps);
  store_sums<kTwoTiles, kTwoPanels>(sums, 2 * kLineBytes);
}

// Floats of the sums of so many rows by two panels.
constexpr int64_t sums_size(int64_t rows) {
  return (rows + 2 * kTileRows - 1) / (2 * kTileRows) * (2 * kTileRows) * 2 * kPanelRows;
}

// The same for all rows of a product. Of few steps, the lines stay in the nearest caches for all of
// them. lines.data: of step `first`. sums: sums_size() floats, aligned to 64 bytes.
NIBBLE_AMX_CALLED inline void add_steps(const Product& product, bool two_panels, const Lines& lines,
                                        int64_t first, int64_t steps, float* sums) {
  for (int64_t row = 0; row < product.rows; row += 2 * kTileRows) {
    const int64_t rows = std::min<int64_t>(product.rows - row, 2 * kTileRows);
    if (row == 0 || rows < 2 * kTileRows) configure_tiles(rows);
    const auto add = rows > kTileRows
                         ? (two_panels ? add_steps<true, true> : add_steps<true, false>)
                         : (two_panels ? add_steps<false, true> : add_steps<false, false>);
    add(product.x.row(row), product.x.stride_bytes, lines, first, steps,
        sums + row * 2 * kPanelRows);
  }
}

// The outputs of one panel, of sums that are 2 kPanelRows apart. scales: of the outputs, or null:
// all 1.
NIBBLE_AMX_CALLED inline void store_products(const Product& product, int64_t p, const float* sums,
                                             const float* scales) {
  const int64_t count = product.w.rows - p * kPanelRows;
  const __mmask16 mask = count < kPanelRows ? __mmask16((1u << count) - 1) : __mmask16(0xffff);
  const __m512 factor = scales != nullptr ? _mm512_loadu_ps(scales) : _mm512_set1_ps(1);
  for (int64_t r = 0; r < product.rows; ++r) {
    float* out = product.output(r, p);
    __m512 y = _mm512_mul_ps(_mm512_load_ps(sums + r * 2 * kPanelRows), factor);
    if (product.accumulate) y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), y);
    _mm512_mask_storeu_ps(out, mask, y);
  }
}

// Panels whose sums wait together, so that a strip's columns of all rows, which they have in
// common, stay in the L2 cache.
inline constexpr int64_t kPanelsAtOnce = 8;

// The product by panels that become lines in strips of kStripSteps steps: make_strip(panel, first
// step, lines of the strip's steps, padded by zeros to a whole one). scales_of(panel): see
// store_products().
template <int64_t kStripSteps, typename MakeStrip, typename ScalesOf>
NIBBLE_AMX void multiply_strips(const Product& product, Scratch<uint8_t>& scratch,
                                const MakeStrip& make_strip, const ScalesOf& scales_of) {
  constexpr int64_t kStripBytes = kStripSteps * kTileBytes;
  if (product.rows == 0) return;
  const int64_t steps = (product.w.cols + kStepColumns - 1) / kStepColumns;
  const int64_t pair_size = sums_size(product.rows);
  uint8_t* strips =
      scratch.fit(size_t(2 * kStripBytes + kPanelsAtOnce / 2 * pair_size * int64_t(sizeof(float))));
  float* const sums = reinterpret_cast<float*>(strips + 2 * kStripBytes);
  for (int64_t p = product.first_panel; p < product.last_panel; p += kPanelsAtOnce) {
    const int64_t end = std::min(p + kPanelsAtOnce, product.last_panel);
    for (int64_t first = 0; first < steps; first += kStripSteps) {
      const int64_t count = std::min(steps - first, kStripSteps);
      for (int64_t pair = p; pair < end; pair += 2) {
        const bool two = pair + 1 < end;
        make_strip(pair, first, strips);
        if (two) make_strip(pair + 1, first, strips + kStripBytes);
        add_steps(product, two, {.data = strips, .panel_bytes = kStripBytes}, first, count,
                  sums + (pair - p) / 2 * pair_size);
      }
    }
    for (int64_t panel = p; panel < end; ++panel) {
      const int64_t i = panel - p;
      store_products(product, panel, sums + i / 2 * pair_size + i % 2 * kPanelRows,
                     scales_of(panel));
    }
  }
  _tile_release();
}

}  // namespace nibble::amx

#endif
