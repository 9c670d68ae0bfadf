// Moments: what calibration keeps of the inputs of a group of linears.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace nibble {

struct Moments {
  int64_t cols = 0;
  int64_t rows = 0;                  // inputs that were added
  std::vector<float> column_amax{};  // [cols] largest magnitude of an input
  std::vector<double> column_sum{};  // [cols] sum of magnitudes
  std::vector<float> inputs{};  // sum of x x', [cols, cols], upper triangle; x: the inputs as they
                                // are in the model quantized so far
  std::vector<float> cross{};   // sum of x_original x', [cols, cols]; empty: not kept

  float amax() const;
  void reset(int64_t num_cols, bool with_cross);
  // x and original (ignored without cross): `count` rows of `cols`, `stride` apart.
  void add(const float* x, const float* original, int64_t count, int64_t stride, ThreadPool& pool);
  // Sum over the inputs of |w x|^2, w [num_rows, cols].
  double output_energy(const float* weights, int64_t num_rows, ThreadPool& pool) const;
};

}  // namespace nibble
