// Moments: what calibration keeps of the inputs of a group of linears.
#pragma once

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"

namespace nibble {

struct Moments {
  int64_t cols = 0;
  int64_t rows = 0;             // inputs that were added
  float amax = 0;               // largest magnitude of an input
  std::vector<float> inputs{};  // sum of x x', [cols, cols], upper triangle; x: the inputs as they
                                // are in the model quantized so far
  std::vector<float> cross{};   // sum of x_original x', [cols, cols]; empty: not kept

  void reset(int64_t num_cols, bool with_cross);
  // x and original (ignored without cross): `count` rows of `cols`, `stride` apart.
  void add(const float* x, const float* original, int64_t count, int64_t stride, ThreadPool& pool);
};

}  // namespace nibble
