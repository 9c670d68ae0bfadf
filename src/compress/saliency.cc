#include "compress/saliency.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "compress/matrix_product.h"

namespace nibble {
namespace {

// Sum over rows of weight * |x down^T|.
double weighted_output(const ObservedInputs& in, const float* down, int64_t outputs,
                       ThreadPool& pool) {
  std::vector<float> out(size_t(in.rows * outputs));
  add_product({.x = {.data = in.x, .depth_stride = 1, .stride = in.cols},
               .y = {.data = down, .depth_stride = 1, .stride = in.cols},
               .out = out.data(),
               .out_stride = outputs,
               .rows = in.rows,
               .cols = outputs,
               .depth = in.cols},
              pool);
  double sum = 0;
  for (int64_t r = 0; r < in.rows; ++r) {
    double square = 0;
    for (int64_t k = 0; k < outputs; ++k) {
      const double y = out[size_t(r * outputs + k)];
      square += y * y;
    }
    sum += double(in.routing[r]) * std::sqrt(square);
  }
  return sum;
}

}  // namespace

std::vector<double> expert_saliency(LayerRunner& runner, SaliencyMethod method, ThreadPool& pool) {
  const Weight& stack = runner.original().experts_down;
  std::vector<double> sums(size_t(stack.count)), rows(size_t(stack.count));
  std::vector<float> down(size_t(stack.rows * stack.cols));
  for (const Slab& slab : runner.tokens().slabs()) {
    runner.run(Version::kOriginal, Block::kFeedForward, slab, {Site::kExpertsDown},
               /*advance=*/true, [&](Site, const ObservedInputs& in) {
                 rows[size_t(in.expert)] += double(in.rows);
                 if (method == SaliencyMethod::kFrequency || in.rows == 0) return;
                 pool.parallel_for(stack.rows, [&](int64_t r) {
                   decode_row(stack, in.expert * stack.rows + r, down.data() + r * stack.cols);
                 });
                 sums[size_t(in.expert)] += weighted_output(in, down.data(), stack.rows, pool);
               });
  }
  if (method == SaliencyMethod::kFrequency) return rows;
  for (size_t e = 0; e < sums.size(); ++e) sums[e] = rows[e] > 0 ? sums[e] / rows[e] : 0;
  return sums;
}

std::vector<int> most_salient(const std::vector<double>& saliency, int count) {
  std::vector<int> experts(saliency.size());
  std::iota(experts.begin(), experts.end(), 0);
  std::stable_sort(experts.begin(), experts.end(),
                   [&](int a, int b) { return saliency[size_t(a)] > saliency[size_t(b)]; });
  experts.resize(size_t(count));
  std::sort(experts.begin(), experts.end());
  return experts;
}

}  // namespace nibble
