// Tensor: a non-owning, row-major, 2-D view of a backend's memory. Whoever allocated the memory
// decides its lifetime; views are passed by value.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/check.h"

namespace nibble {

enum class DType : uint8_t { kF32, kBF16, kF16, kF8E4M3, kU8, kI8, kI16, kI32, kI64 };

constexpr size_t dtype_bytes(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kBF16:
    case DType::kF16:
    case DType::kI16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kF8E4M3:
    case DType::kU8:
    case DType::kI8:
      return 1;
  }
  return 0;
}

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from one row to the next, >= cols

  Tensor() = default;
  Tensor(void* data, DType dtype, int64_t rows, int64_t cols)
      : Tensor(data, dtype, rows, cols, cols) {}
  Tensor(void* data, DType dtype, int64_t rows, int64_t cols, int64_t stride)
      : data(data), dtype(dtype), rows(rows), cols(cols), stride(stride) {}

  // Host-readable backends only.
  template <typename T>
  T* row(int64_t r) const {
    CHECK(r >= 0 && r < rows, "row %ld of %ld", long(r), long(rows));
    return static_cast<T*>(data) + r * stride;
  }

  // The view of columns [first, first + count).
  Tensor columns(int64_t first, int64_t count) const {
    CHECK(first >= 0 && first + count <= cols, "columns %ld+%ld of %ld", long(first), long(count),
          long(cols));
    return {static_cast<char*>(data) + size_t(first) * dtype_bytes(dtype), dtype, rows, count,
            stride};
  }
};

}  // namespace nibble
