#include "compress/moments.h"

#include <algorithm>
#include <cmath>

#include "compress/matrix_product.h"

namespace nibble {

void Moments::reset(int64_t num_cols, bool with_cross) {
  cols = num_cols;
  rows = 0;
  amax = 0;
  inputs.assign(size_t(cols * cols), 0.0f);
  cross.assign(with_cross ? size_t(cols * cols) : 0, 0.0f);
}

void Moments::add(const float* x, const float* original, int64_t count, int64_t stride,
                  ThreadPool& pool) {
  rows += count;
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t k = 0; k < cols; ++k) amax = std::max(amax, std::fabs(x[r * stride + k]));
  }
  const Operand<float> quantized{.data = x, .depth_stride = stride};
  MatrixProduct<float> product{.x = quantized,
                               .y = quantized,
                               .out = inputs.data(),
                               .out_stride = cols,
                               .rows = cols,
                               .cols = cols,
                               .depth = count,
                               .upper = true};
  add_product(product, pool);
  if (cross.empty()) return;
  product.x.data = original;
  product.out = cross.data();
  product.upper = false;
  add_product(product, pool);
}

}  // namespace nibble
