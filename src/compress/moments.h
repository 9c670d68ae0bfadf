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
  std::vector<float> inputs{};  // sum of w x x', [cols, cols], upper triangle; x: the inputs as
                                // they are in the model quantized so far, w: their weights
  std::vector<float> cross{};   // sum of w x_original x', [cols, cols]; empty: not kept

  float amax() const;
  void reset(int64_t num_cols, bool with_cross);
  // x and original (ignored without cross): [count, cols]. weights: [count]; null: all are 1.
  void add(const float* x, const float* original, const float* weights, int64_t count,
           ThreadPool& pool);
  // Sum over the inputs of w |m x|^2, m = weights [num_rows, cols].
  double output_energy(const float* weights, int64_t num_rows, ThreadPool& pool) const;
};

}  // namespace nibble
