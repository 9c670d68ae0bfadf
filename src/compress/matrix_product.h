// The one matrix product of this room, FP32 and FP64, over matrices with any strides.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace nibble {

template <typename T>
struct Operand {  // element (t, i) at data[t * depth_stride + i * stride]
  const T* data = nullptr;
  int64_t depth_stride = 0;
  int64_t stride = 1;
};

// out[i][j] += sum over t < depth of x(t, i) * y(t, j) * weights[t], or -= with `subtract`, for
// i < rows and j < cols. Without weights all are 1. `upper`: what lies below the diagonal is left
// undefined. Sums run in rising t, in chunks of kProductDepth, whatever the number of threads.
template <typename T>
struct MatrixProduct {
  Operand<T> x{};
  Operand<T> y{};
  const T* weights = nullptr;  // [depth], or null
  T* out = nullptr;
  int64_t out_stride = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t depth = 0;
  bool subtract = false;
  bool upper = false;
};

inline constexpr int64_t kProductDepth = 256;

void add_product(const MatrixProduct<float>& product, ThreadPool& pool);
void add_product(const MatrixProduct<double>& product, ThreadPool& pool);

}  // namespace nibble
