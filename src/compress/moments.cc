#include "compress/moments.h"

#include <algorithm>
#include <cmath>

#include "compress/matrix_product.h"

namespace nibble {

float Moments::amax() const {
  return cols == 0 ? 0 : *std::max_element(column_amax.begin(), column_amax.end());
}

void Moments::reset(int64_t num_cols, bool with_cross) {
  cols = num_cols;
  rows = 0;
  column_amax.assign(size_t(cols), 0.0f);
  column_sum.assign(size_t(cols), 0.0);
  inputs.assign(size_t(cols * cols), 0.0f);
  cross.assign(with_cross ? size_t(cols * cols) : 0, 0.0f);
}

void Moments::add(const float* x, const float* original, const float* weights, int64_t count,
                  ThreadPool& pool) {
  rows += count;
  constexpr int64_t kColumns = 64;
  pool.parallel_for((cols + kColumns - 1) / kColumns, [&](int64_t i) {
    const int64_t first = i * kColumns, width = std::min(kColumns, cols - first);
    float sum[kColumns] = {};
    float* amax = column_amax.data() + first;
    for (int64_t r = 0; r < count; ++r) {
      const float* row = x + r * cols + first;
      for (int64_t k = 0; k < width; ++k) {
        const float magnitude = std::fabs(row[k]);
        sum[k] += magnitude;
        amax[k] = amax[k] < magnitude ? magnitude : amax[k];
      }
    }
    for (int64_t k = 0; k < width; ++k) column_sum[size_t(first + k)] += sum[k];
  });
  const Operand<float> quantized{.data = x, .depth_stride = cols};
  MatrixProduct<float> product{.x = quantized,
                               .y = quantized,
                               .weights = weights,
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

double Moments::output_energy(const float* weights, int64_t num_rows, ThreadPool& pool) const {
  std::vector<float> whole(inputs);
  pool.parallel_for(cols, [&](int64_t i) {
    for (int64_t j = 0; j < i; ++j) whole[size_t(i * cols + j)] = inputs[size_t(j * cols + i)];
  });
  std::vector<float> product(size_t(num_rows * cols));
  add_product({.x = {.data = weights, .depth_stride = 1, .stride = cols},
               .y = {.data = whole.data(), .depth_stride = cols},
               .out = product.data(),
               .out_stride = cols,
               .rows = num_rows,
               .cols = cols,
               .depth = cols},
              pool);
  double sum = 0;
  for (size_t i = 0; i < product.size(); ++i) sum += double(product[i]) * weights[i];
  return sum;
}

}  // namespace nibble
