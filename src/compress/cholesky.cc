#include "compress/cholesky.h"

#include <algorithm>
#include <cmath>

#include "compress/matrix_product.h"

namespace nibble {
namespace {

constexpr int64_t kBlock = 64;

// Factors the diagonal block in place.
bool factor_block(double* g, int64_t stride, int64_t n) {
  for (int64_t r = 0; r < n; ++r) {
    double* row = g + r * stride;
    if (!(row[r] > 0)) return false;
    const double inverse = 1 / std::sqrt(row[r]);
    for (int64_t c = r; c < n; ++c) row[c] *= inverse;
    for (int64_t s = r + 1; s < n; ++s) {
      double* to = g + s * stride;
      const double factor = row[s];
      for (int64_t c = s; c < n; ++c) to[c] -= factor * row[c];
    }
  }
  return true;
}

// Columns [first, last) right of a factored block: g = U_block^-T g.
void solve_panel(double* g, int64_t stride, int64_t n, int64_t first, int64_t last) {
  for (int64_t r = 0; r < n; ++r) {
    double* row = g + r * stride;
    const double inverse = 1 / row[r];
    for (int64_t c = first; c < last; ++c) row[c] *= inverse;
    for (int64_t s = r + 1; s < n; ++s) {
      double* to = g + s * stride;
      const double factor = row[s];
      for (int64_t c = first; c < last; ++c) to[c] -= factor * row[c];
    }
  }
}

}  // namespace

bool factor_cholesky(double* g, int64_t n, ThreadPool& pool) {
  for (int64_t k = 0; k < n; k += kBlock) {
    const int64_t width = std::min(kBlock, n - k), rest = n - k - width;
    double* block = g + k * n + k;
    if (!factor_block(block, n, width)) return false;
    if (rest == 0) break;
    constexpr int64_t kColumns = 512;
    pool.parallel_for((rest + kColumns - 1) / kColumns, [&](int64_t i) {
      solve_panel(block, n, width, width + i * kColumns,
                  width + std::min(rest, (i + 1) * kColumns));
    });
    const Operand<double> panel{.data = block + width, .depth_stride = n};
    add_product({.x = panel,
                 .y = panel,
                 .out = g + (k + width) * (n + 1),
                 .out_stride = n,
                 .rows = rest,
                 .cols = rest,
                 .depth = width,
                 .subtract = true,
                 .upper = true},
                pool);
  }
  return true;
}

void solve_cholesky(const float* u, int64_t n, float* x, int64_t rows, ThreadPool& pool) {
  // y U = x, from the left.
  for (int64_t k = 0; k < n; k += kBlock) {
    const int64_t width = std::min(kBlock, n - k), rest = n - k - width;
    const float* block = u + k * n + k;
    pool.parallel_for(rows, [&](int64_t r) {
      float* row = x + r * n + k;
      for (int64_t i = 0; i < width; ++i) {
        const float value = row[i] /= block[i * n + i];
        for (int64_t j = i + 1; j < width; ++j) row[j] -= value * block[i * n + j];
      }
    });
    if (rest == 0) break;
    add_product({.x = {.data = x + k, .depth_stride = 1, .stride = n},
                 .y = {.data = block + width, .depth_stride = n},
                 .out = x + k + width,
                 .out_stride = n,
                 .rows = rows,
                 .cols = rest,
                 .depth = width,
                 .subtract = true},
                pool);
  }
  // x U^T = y, from the right.
  for (int64_t k = (n - 1) / kBlock * kBlock; k >= 0; k -= kBlock) {
    const int64_t width = std::min(kBlock, n - k);
    const float* block = u + k * n + k;
    pool.parallel_for(rows, [&](int64_t r) {
      float* row = x + r * n + k;
      for (int64_t i = width - 1; i >= 0; --i) {
        float value = row[i];
        for (int64_t j = i + 1; j < width; ++j) value -= row[j] * block[i * n + j];
        row[i] = value / block[i * n + i];
      }
    });
    if (k == 0) break;
    add_product({.x = {.data = x + k, .depth_stride = 1, .stride = n},
                 .y = {.data = u + k, .depth_stride = 1, .stride = n},
                 .out = x,
                 .out_stride = n,
                 .rows = rows,
                 .cols = k,
                 .depth = width,
                 .subtract = true},
                pool);
  }
}

}  // namespace nibble
