#include "compress/awq_search.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "compress/round_to_nearest.h"
#include "quant/nvfp4.h"

namespace nibble {
namespace {

constexpr int kSteps = 10;

std::vector<float> weight_importance(const std::vector<float>& w, int64_t rows, int64_t cols) {
  std::vector<double> sum(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < cols; b += nvfp4::kBlock) {
      const float* block = w.data() + r * cols + b;
      float amax = 0;
      for (int i = 0; i < nvfp4::kBlock; ++i) amax = std::max(amax, std::fabs(block[i]));
      for (int i = 0; i < nvfp4::kBlock; ++i) {
        sum[size_t(b + i)] += std::fabs(block[i]) / (amax + FLT_MIN);
      }
    }
  }
  std::vector<float> mean(sum.size());
  for (size_t k = 0; k < sum.size(); ++k) mean[k] = float(sum[k] / double(rows));
  return mean;
}

std::vector<float> scales_at(double a, const std::vector<float>& weight, const Moments& m) {
  std::vector<float> s(weight.size());
  float least = 1e4f, most = 1e-4f;
  for (size_t k = 0; k < s.size(); ++k) {
    const double act = m.column_sum[k] / double(m.rows);
    const double scale = std::pow(act, a) / (std::pow(double(weight[k]), 1 - a) + FLT_MIN);
    s[k] = float(std::clamp(scale, 1e-4, 1e4));
    least = std::min(least, s[k]);
    most = std::max(most, s[k]);
  }
  for (float& x : s) x /= std::sqrt(most * least);
  return s;
}

}  // namespace

AwqResult search_awq(const std::vector<float>& weights, int64_t rows, const Moments& moments,
                     const StoreFactors& store, ThreadPool& pool) {
  const int64_t cols = moments.cols;
  const double output = moments.output_energy(weights.data(), rows, pool);
  AwqResult best;
  double least = INFINITY;
  const std::vector<float> importance = weight_importance(weights, rows, cols);
  std::vector<float> scaled(weights.size());
  for (int step = 0; step <= kSteps; ++step) {
    std::vector<float> factors(static_cast<size_t>(cols), 1.0f);
    if (moments.rows > 0) {
      factors = scales_at(double(step) / kSteps, importance, moments);
      for (float& f : factors) f = 1 / f;
    }
    factors = store(std::move(factors));
    for (size_t i = 0; i < weights.size(); ++i) scaled[i] = weights[i] / factors[i % size_t(cols)];
    Encoded encoded = round_to_nearest(scaled.data(), rows, cols, Precision::kNvfp4, pool);
    pool.parallel_for(rows, [&](int64_t r) {
      float* row = scaled.data() + r * cols;
      encoded.decode_row(r, row);
      for (int64_t k = 0; k < cols; ++k) {
        row[k] = row[k] * factors[size_t(k)] - weights[size_t(r * cols + k)];
      }
    });
    const double loss = moments.output_energy(scaled.data(), rows, pool);
    if (!(loss < least)) continue;
    least = loss;
    best.encoded = std::move(encoded);
    best.factors = std::move(factors);
    if (moments.rows == 0) break;
  }
  best.output_error = output > 0 ? std::sqrt(least / output) : 0;
  best.encoded.input_amax = 0;
  for (int64_t k = 0; k < cols; ++k) {
    best.encoded.input_amax =
        std::max(best.encoded.input_amax, moments.column_amax[size_t(k)] * best.factors[size_t(k)]);
  }
  return best;
}

}  // namespace nibble
