// AWQ's search (ModelOpt's awq_lite): input columns are scaled so that those that matter are
// rounded finer.
//
//   importance  act[k] = mean |x[k]|,  weight[k] = mean over rows of |W[n,k]| / amax of its block
//   s(a) = clamp(act^a / weight^(1-a), 1e-4, 1e4), divided by sqrt(max * min);  a = 0, 0.1 .. 1
//   chosen: the first a with the least E |Q(W s) (x / s) - W x|^2
#pragma once

#include <functional>
#include <vector>

#include "compress/encoded.h"
#include "compress/moments.h"

namespace nibble {

struct AwqResult {
  Encoded encoded{};             // of W / input_factors, rounded to nearest
  std::vector<float> factors{};  // [cols]: what the input must be multiplied by, 1 / s
  double output_error = 0;       // relative, over the calibration inputs
};

// What storage makes of factors, such as rounding them to BF16.
using StoreFactors = std::function<std::vector<float>(std::vector<float>)>;

// weights [rows, moments.cols]. Without inputs all factors are 1.
AwqResult search_awq(const std::vector<float>& weights, int64_t rows, const Moments& moments,
                     const StoreFactors& store, ThreadPool& pool);

}  // namespace nibble
