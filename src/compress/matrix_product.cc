// out += x^T y. Per chunk of the depth both operands are packed into panels, x 6 columns wide and y
// 4 vectors wide (2 where there are 16 registers), so that a tile of 6 x 4 accumulators reads two
// streams.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "compress/matrix_product.cc"
#include "compress/matrix_product.h"

#include <algorithm>

#include "compress/kept_array.h"
#include "hwy/foreach_target.h"  // before simd-inl.h
// clang-format off
#include "backend/cpu/simd-inl.h"
// clang-format on

HWY_BEFORE_NAMESPACE();
namespace nibble {
namespace HWY_NAMESPACE {

constexpr int kTileRows = 6;
constexpr int kRowsAtOnce = 24 * kTileRows;  // of x, which stay in the L2 cache for all columns
constexpr int kTileVectors = kVectorRegisters == 32 ? 4 : 2;

// The columns [first, first + kWidth) of the operand, [depth][kWidth], zeros beyond `count`; times
// sign, and row t times weights[t] where there are any.
template <int64_t kWidth, typename T>
void pack_panel(const Operand<T>& from, int64_t t0, int64_t depth, int64_t first, int64_t count,
                T sign, const T* weights, T* to) {
  const int64_t used = std::min(kWidth, count - first);
  const bool whole = used == kWidth && from.stride == 1;
  for (int64_t t = 0; t < depth; ++t, to += kWidth) {
    const T* row = from.data + (t0 + t) * from.depth_stride + first * from.stride;
    const T factor = weights == nullptr ? sign : sign * weights[t0 + t];
    if (whole) {
      for (int64_t i = 0; i < kWidth; ++i) to[i] = factor * row[i];
      continue;
    }
    for (int64_t i = 0; i < used; ++i) to[i] = factor * row[i * from.stride];
    for (int64_t i = used; i < kWidth; ++i) to[i] = 0;
  }
}

template <typename T>
HWY_NOINLINE void multiply_tile(const T* x, const T* y, int64_t depth, int64_t rows, int64_t cols,
                                T* out, int64_t out_stride) {
  const hn::ScalableTag<T> d;
  constexpr int64_t kWidth = int64_t(HWY_LANES(T)) * kTileVectors;
  for (int64_t r = 0; r < rows; ++r) __builtin_prefetch(out + r * out_stride, 1, 3);
  hn::Vec<hn::ScalableTag<T>> sum[kTileRows][kTileVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) sum[r][v] = hn::Zero(d);
  }
  for (int64_t t = 0; t < depth; ++t, x += kTileRows, y += kWidth) {
    hn::Vec<hn::ScalableTag<T>> factors[kTileVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) factors[v] = hn::LoadU(d, y + v * HWY_LANES(T));
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const auto factor = hn::Set(d, x[r]);
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) sum[r][v] = hn::MulAdd(factors[v], factor, sum[r][v]);
    }
  }
  if (rows == kTileRows && cols == kWidth) {
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kTileVectors; ++v) {
        T* to = out + r * out_stride + v * HWY_LANES(T);
        hn::StoreU(hn::Add(hn::LoadU(d, to), sum[r][v]), d, to);
      }
    }
    return;
  }
  T row[kWidth];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kTileVectors; ++v) hn::StoreU(sum[r][v], d, row + v * HWY_LANES(T));
    if (r >= rows) continue;
    T* to = out + r * out_stride;
    for (int64_t c = 0; c < cols; ++c) to[c] += row[c];
  }
}

template <typename T>
void add_product_of(const MatrixProduct<T>& p, ThreadPool& pool) {
  constexpr int64_t kWidth = int64_t(HWY_LANES(T)) * kTileVectors;
  const int64_t row_tiles = (p.rows + kTileRows - 1) / kTileRows;
  const int64_t col_tiles = (p.cols + kWidth - 1) / kWidth;
  const int64_t chunk = std::min(p.depth, kProductDepth);
  static thread_local KeptArray<T> panels[2];
  T* x = panels[0].fit(size_t(row_tiles * kTileRows * chunk));
  T* y = panels[1].fit(size_t(col_tiles * kWidth * chunk));
  for (int64_t t0 = 0; t0 < p.depth; t0 += kProductDepth) {
    const int64_t depth = std::min(kProductDepth, p.depth - t0);
    pool.parallel_for(row_tiles + col_tiles, [&](int64_t i) {
      if (i < row_tiles) {
        pack_panel<kTileRows, T>(p.x, t0, depth, i * kTileRows, p.rows, T(p.subtract ? -1 : 1),
                                 p.weights, x + i * kTileRows * depth);
      } else {
        const int64_t j = i - row_tiles;
        pack_panel<kWidth, T>(p.y, t0, depth, j * kWidth, p.cols, 1, nullptr,
                              y + j * kWidth * depth);
      }
    });
    // Column tiles are dealt in turn: with `upper` their work grows from left to right.
    pool.run([&](int share) {
      for (int64_t first = 0; first < p.rows; first += kRowsAtOnce) {
        for (int64_t j = share; j < col_tiles; j += pool.size()) {
          const int64_t col = j * kWidth, cols = std::min(kWidth, p.cols - col);
          const int64_t last =
              std::min({first + kRowsAtOnce, p.rows, p.upper ? col + cols : p.rows});
          for (int64_t row = first; row < last; row += kTileRows) {
            multiply_tile(x + row * depth, y + j * kWidth * depth, depth,
                          std::min<int64_t>(kTileRows, p.rows - row), cols,
                          p.out + row * p.out_stride + col, p.out_stride);
          }
        }
      }
    });
  }
}

void add_product_f32(const MatrixProduct<float>& product, ThreadPool& pool) {
  add_product_of(product, pool);
}
void add_product_f64(const MatrixProduct<double>& product, ThreadPool& pool) {
  add_product_of(product, pool);
}

}  // namespace HWY_NAMESPACE
}  // namespace nibble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(add_product_f32);
HWY_EXPORT(add_product_f64);

void add_product(const MatrixProduct<float>& product, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(add_product_f32)(product, pool);
}
void add_product(const MatrixProduct<double>& product, ThreadPool& pool) {
  HWY_DYNAMIC_DISPATCH(add_product_f64)(product, pool);
}

}  // namespace nibble
#endif
