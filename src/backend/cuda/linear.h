// linear: out = x w^T.
#pragma once

#include <memory>

#include "backend/cuda/launch.h"
#include "backend/cuda/rows.h"
#include "backend/cuda/weights.h"
#include "base/tensor.h"
#include "quant/weight.h"

namespace nibble::cuda {

// Use::kLinear. The result is what Weight::resident of `w` holds in linear().
std::shared_ptr<const void> upload_linear(const Uploads& to, const Weight& host);

// x [T, K] BF16 or F32 (rounded to BF16 first), w [N, K], out [T, N] BF16 or F32; `accumulate`:
// out += x w^T. Any stride and column offset; the order of the sum over K is the same for any T.
void linear(const Context& context, Tensor x, const Weight& w, Tensor out, bool accumulate);

// The same of a norm's output, and the norm itself, in one kernel.
struct NormedLinear {
  Norm norm{};
  const Weight* w = nullptr;
  Tensor out{};
  bool accumulate = false;
};
bool can_multiply_norm(const Norm& norm, const Weight& w);
void norm_and_linear(const Context& context, const NormedLinear& linear);

}  // namespace nibble::cuda
