// route: which experts a row takes, and their weights. Always in FP32.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/weights.h"

namespace nibble::cuda {

// s = sigmoid(x router^T); the top_k of s + bias, lowest id first among equals; weights = s / (sum
// of the chosen s + 1e-20) * scaling. x BF16 or F32; router and bias as upload_rows() leaves them.
// At most 256 experts.
void route(const Context& context, Tensor x, const Weight& router, const Weight& bias,
           const RouterShape& shape, Routing out);

}  // namespace nibble::cuda
