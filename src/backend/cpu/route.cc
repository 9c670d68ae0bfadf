// s = sigmoid(x router^T); the top_k of s + bias; weights = s / (sum of the chosen s + 1e-20) *
// scaling. Rows are shared among the threads; one row is one thread's.
#include "backend/cpu/route.h"

#include <limits>

#include "backend/cpu/rows.h"

namespace nibble {

// Overwrites a chosen expert's score by NaN, which compares greater than nothing.
void CpuRouter::choose(float* scores, const float* bias, const RouterShape& shape, int32_t* experts,
                       float* weights) const {
  float sum = 0;
  for (int k = 0; k < shape.top_k; ++k) {
    int best = -1;
    float best_choice = 0;
    for (int e = 0; e < shape.num_experts; ++e) {
      const float choice = scores[e] + bias[e];
      if (choice > best_choice || (best < 0 && choice == choice)) best = e, best_choice = choice;
    }
    CHECK(best >= 0, "router scores are not numbers");
    experts[k] = best;
    weights[k] = scores[best];
    sum += scores[best];
    scores[best] = std::numeric_limits<float>::quiet_NaN();
  }
  const float scale = shape.scaling / (shape.normalize ? sum + 1e-20f : 1.0f);
  for (int k = 0; k < shape.top_k; ++k) weights[k] *= scale;
  for (int s = 0; s < shape.num_shared; ++s) {
    experts[shape.top_k + s] = shape.num_experts + s;
    weights[shape.top_k + s] = 1;
  }
}

void CpuRouter::run(Tensor x, const Weight& router, const Weight& bias, const RouterShape& shape,
                    Routing out) {
  CHECK(x.cols == router.cols && router.rows == shape.num_experts &&
            bias.cols == shape.num_experts && shape.top_k <= shape.num_experts,
        "%s", router.name.c_str());
  if (x.rows == 0) return;
  const Panels panels = packed(router).panels.first;
  const Tensor scores(scores_.fit(size_t(x.rows * shape.num_experts)), DType::kF32, x.rows,
                      shape.num_experts);
  const Kernel& kernel = workers_.exact_kernel(panels.format);
  workers_.run(x.rows > 1 ? x.rows * router.rows * router.cols : 0, [&](int thread) {
    const Share rows = workers_.share(thread, x.rows);
    if (rows.empty()) return;
    const int64_t count = rows.last - rows.first;
    const Tensor mine(x.row<float>(rows.first), x.dtype, count, x.cols, x.stride);
    workers_.multiply(thread, kernel,
                      {.w = panels,
                       .last_panel = panels.count(),
                       .x = workers_.make_inputs(thread, kernel, mine),
                       .rows = count,
                       .out = scores.row<float>(rows.first),
                       .out_stride = scores.stride});
    for (int64_t t = rows.first; t < rows.last; ++t) {
      sigmoid_row(scores.row<float>(t), shape.num_experts);
      choose(scores.row<float>(t), packed(bias).values.data(), shape, out.experts.row<int32_t>(t),
             out.weights.row<float>(t));
    }
  });
}

}  // namespace nibble
