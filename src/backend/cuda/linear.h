// linear: out = x w^T, and the layout of its matrices on the card.
#pragma once

#include <memory>

#include "backend/cuda/launch.h"
#include "backend/cuda/weights.h"
#include "base/tensor.h"
#include "quant/weight.h"

namespace nibble::cuda {

// Use::kLinear. The result is what Weight::resident of `w` holds in linear().
std::shared_ptr<const void> upload_linear(const Uploads& to, const Weight& host);

// x [T, K] BF16, w [N, K], out [T, N] BF16 or F32; `accumulate`: out += x w^T. Any stride and
// column offset; the order of the sum over K is the same for any T. Sums are FP32 and rounded once.
void linear(const Context& context, Tensor x, const Weight& w, Tensor out, bool accumulate);

}  // namespace nibble::cuda
