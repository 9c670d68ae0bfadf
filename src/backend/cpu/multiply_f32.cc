// out = x w^T in FP32.                      x [M, K] rows, w panels of 16 outputs (pack.h)
//
// A tile is R rows by P panels, all accumulators in registers; K runs innermost and undivided, so
// an output is sum(k) in rising k for any M. P shrinks as R grows: with 16 registers of 8 lanes
// 1x4, 2x2, 3..5x1; with 32 registers of 16 lanes 1..6x4. One row needs the many panels to hide the
// latency of its multiply-adds; more rows use a loaded line more often. One row reads its groups as
// one stream, which AMD's machines prefetch best alone; elsewhere it asks for it ahead.
//
// Measured on one core of an EPYC (Zen 4) guest with AVX2: 120 rows 85 of 91 GFLOP/s (93%), 16 rows
// 86%, 3 rows 71%; one row over 33 MB of weights 35 to 50 GB/s of 43 that plain reading gives. Two
// cores of a Xeon (Sapphire Rapids) guest, one row of 2048 x 5120 in BF16 from memory, others
// computing beside, in three pairs: 17.3, 19.5 and 17.3 GB/s, 20.4, 21.4 and 17.6 with prefetching,
// of a build that did so for up to six rows, which gained nothing clear.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "backend/cpu/multiply_f32.cc"
#include "backend/cpu/instruction_sets.h"
#include "backend/cpu/multiply.h"
#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

constexpr int kVecs = kPanelRows / kLanes;  // vectors a panel
constexpr int kMaxAccumulators = kVectorRegisters == 32 ? 24 : 10;
constexpr int kMaxRows = kMaxAccumulators / kVecs < 1   ? 1
                         : kMaxAccumulators / kVecs < 6 ? kMaxAccumulators / kVecs
                                                        : 6;

constexpr int panels_of(int rows) {
  const int most = rows == 1 ? 8 : kMaxAccumulators;  // 8 chains hide the latency
  int panels = 1;
  while (panels < kGroupPanels && rows * panels * 2 * kVecs <= most) panels *= 2;
  return panels;
}

template <int kRows, int kPanels>
struct Tile {
  FloatVec sum[kRows][kPanels * kVecs];
};

// One k of the tile.
template <int kRows, int kPanels>
HWY_INLINE void multiply_add(Tile<kRows, kPanels>& tile, const FloatVec* w, const float* const* x,
                             int64_t k) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const FloatVec factor = set(x[r][k]);
#pragma GCC unroll 8
    for (int v = 0; v < kPanels * kVecs; ++v) {
      tile.sum[r][v] = hn::MulAdd(w[v], factor, tile.sum[r][v]);
    }
  }
}

template <PanelFormat kFormat, bool kPrefetch, int kRows, int kPanels>
HWY_INLINE void sum_over_k(const Panels& w, int64_t p, const InputRows& x, int64_t first_row,
                           Tile<kRows, kPanels>& tile) {
  const float* rows[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    rows[r] = reinterpret_cast<const float*>(x.row(first_row + r));
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kPanels * kVecs; ++v) tile.sum[r][v] = zero();
  }
  const uint8_t* line = w.panel(p);
  const int64_t stride = w.line_stride(p);
  const auto prefetch = [&] {
    if constexpr (kPrefetch) {
#pragma GCC unroll 8
      for (int i = 0; i < kPanels; ++i) prefetch_stream(line + i * kLineBytes);
    }
  };
  FloatVec factors[kPanels * kVecs];
  if constexpr (kFormat == PanelFormat::kF32) {
    for (int64_t k = 0; k < w.cols; ++k, line += stride) {
      prefetch();
#pragma GCC unroll 8
      for (int v = 0; v < kPanels * kVecs; ++v) {
        factors[v] = load(reinterpret_cast<const float*>(line) + v * kLanes);
      }
      multiply_add<kRows, kPanels>(tile, factors, rows, k);
    }
  } else {
    const Words words;
    const auto pair = [&](int v) HWY_ATTR {
      return hn::LoadU(words, reinterpret_cast<const uint32_t*>(line) + v * kLanes);
    };
    int64_t k = 0;
    for (; k + 2 <= w.cols; k += 2, line += stride) {
      prefetch();
#pragma GCC unroll 8
      for (int v = 0; v < kPanels * kVecs; ++v) factors[v] = even_half(pair(v));
      multiply_add<kRows, kPanels>(tile, factors, rows, k);
#pragma GCC unroll 8
      for (int v = 0; v < kPanels * kVecs; ++v) factors[v] = odd_half(pair(v));
      multiply_add<kRows, kPanels>(tile, factors, rows, k + 1);
    }
    if (k < w.cols) {
#pragma GCC unroll 8
      for (int v = 0; v < kPanels * kVecs; ++v) factors[v] = even_half(pair(v));
      multiply_add<kRows, kPanels>(tile, factors, rows, k);
    }
  }
}

// Adds and stores 16 outputs of a row, or the first `count` of them.
HWY_INLINE void store_panel(const FloatVec* sum, const float* scales, int64_t count,
                            bool accumulate, float* out) {
  HWY_ALIGN float whole[kPanelRows];
  float* to = count < kPanelRows ? whole : out;
  if (to == whole && accumulate) {
    for (int64_t i = 0; i < count; ++i) whole[i] = out[i];
    for (int64_t i = count; i < kPanelRows; ++i) whole[i] = 0;
  }
#pragma GCC unroll 8
  for (int v = 0; v < kVecs; ++v) {
    FloatVec y = sum[v];
    if (scales != nullptr) y = hn::Mul(y, load(scales + v * kLanes));
    if (accumulate) y = hn::Add(load(to + v * kLanes), y);
    store(y, to + v * kLanes);
  }
  if (to == whole) {
    for (int64_t i = 0; i < count; ++i) out[i] = whole[i];
  }
}

// One tile, from panel p on.
template <PanelFormat kFormat, bool kPrefetch, int kRows, int kPanels>
HWY_NOINLINE void multiply_tile(const Product& product, int64_t first_row, int64_t p) {
  const Panels& w = product.w;
  Tile<kRows, kPanels> tile;
  sum_over_k<kFormat, kPrefetch, kRows, kPanels>(w, p, product.x, first_row, tile);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < kPanels; ++i) {
      const int64_t panel = p + i;
      const int64_t count = w.rows - panel * kPanelRows;
      store_panel(tile.sum[r] + i * kVecs,
                  w.row_scales == nullptr ? nullptr : w.row_scales + panel * kPanelRows,
                  count < kPanelRows ? count : kPanelRows, product.accumulate,
                  product.output(first_row + r, panel));
    }
  }
}

// The panels [first, last) of a group, in tiles as wide as registers allow.
template <PanelFormat kFormat, bool kPrefetch, int kRows, int kPanels = panels_of(kRows)>
void multiply_rows(const Product& product, int64_t first_row, int64_t first, int64_t last) {
  int64_t p = first;
  for (; p + kPanels <= last; p += kPanels) {
    multiply_tile<kFormat, kPrefetch, kRows, kPanels>(product, first_row, p);
  }
  if constexpr (kPanels > 1) {
    if (p < last)
      multiply_rows<kFormat, kPrefetch, kRows, kPanels / 2>(product, first_row, p, last);
  }
}

template <PanelFormat kFormat, int kRows = kMaxRows>
void multiply_tile_rows(const Product& product, int64_t num_rows, int64_t first_row, int64_t first,
                        int64_t last) {
  if (num_rows == kRows) {
    multiply_rows<kFormat, false, kRows>(product, first_row, first, last);
  } else if constexpr (kRows > 1) {
    multiply_tile_rows<kFormat, kRows - 1>(product, num_rows, first_row, first, last);
  }
}

// Rows are dealt to tiles evenly. Panels that one tile takes at once are used by all tiles before
// the next are read.
template <PanelFormat kFormat>
void multiply_format(const Product& product) {
  static const bool looks_ahead = instruction_sets().looks_ahead;
  const int64_t tiles = (product.rows + kMaxRows - 1) / kMaxRows;
  const int64_t width = panels_of(int(product.rows / tiles));
  for (int64_t p = product.first_panel; p < product.last_panel;) {
    const int64_t last = std::min({p + width, p + product.w.left_in_group(p), product.last_panel});
    if (product.rows == 1 && !looks_ahead) {
      multiply_rows<kFormat, true, 1>(product, 0, p, last);
      p = last;
      continue;
    }
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = product.rows * i / tiles, end = product.rows * (i + 1) / tiles;
      multiply_tile_rows<kFormat>(product, end - row, row, p, last);
    }
    p = last;
  }
}

void multiply(const Product& product) {
  if (product.w.format == PanelFormat::kF32) {
    multiply_format<PanelFormat::kF32>(product);
  } else {
    multiply_format<PanelFormat::kBF16>(product);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(multiply);

void multiply_f32(const Product& product, Scratch<uint8_t>&) {
  if (product.rows > 0) HWY_DYNAMIC_DISPATCH(multiply)(product);
}

}  // namespace nibble
#endif
