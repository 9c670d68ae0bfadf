// route: which experts a row takes, and their weights. Products of BF16 or FP32 values in FP32.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/rows.h"
#include "backend/cuda/weights.h"

namespace nibble::cuda {

// Use::kRouter: BF16 rows as they are, other formats as FP32.
std::shared_ptr<const void> upload_router(const Uploads& to, const Weight& host);

// s = sigmoid(x router^T); the top_k of s + bias, lowest id first among equals; weights = s / (sum
// of the chosen s + 1e-20) * scaling. x BF16, of at most 2,048 columns; the bias as upload_rows()
// leaves it. At most 256 experts.
void route(const Context& context, Tensor x, const Weight& router, const Weight& bias,
           const RouterShape& shape, Routing out);

// Whether the norm whose output is routed next can be computed by the same kernel.
bool can_route_with(const Norm& norm);
// The norm, then route() of its output: one stage instead of two.
void norm_and_route(const Context& context, const Norm& norm, const Weight& router,
                    const Weight& bias, const RouterShape& shape, Routing out);

}  // namespace nibble::cuda
