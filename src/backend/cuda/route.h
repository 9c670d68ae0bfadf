// route: which experts a row takes, and their weights. Products of BF16 or FP32 values in FP32.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/rows.h"
#include "backend/cuda/weights.h"

namespace nibble::cuda {

// On the card.
struct Router {
  const void* rows = nullptr;  // [experts, columns] BF16 or F32
  DType dtype = DType::kF32;
  float* scores = nullptr;      // [kMaxStreamedRows, experts]
  unsigned* arrived = nullptr;  // [kMaxStreamedRows] blocks of a row; 0 between launches
};

// Use::kRouter: BF16 rows as they are, other formats as FP32.
std::shared_ptr<const void> upload_router(const Uploads& to, const Weight& host);

// s = sigmoid(x router^T); the top_k of s + bias, lowest id first among equals; weights = s / (sum
// of the chosen s + 1e-20) * scaling. x BF16, of at most 2,048 columns; the bias as upload_rows()
// leaves it. At most 256 experts.
void route(const Context& context, Tensor x, const Weight& router, const Weight& bias,
           const RouterShape& shape, Routing out);

// A norm and the routing of its output, to be done by one kernel.
struct NormedRoute {
  Norm norm{};
  const Router* router = nullptr;
  const float* bias = nullptr;
  RouterShape shape{};
  Routing out{};
};

// Whether a norm can be part of one.
bool can_route_with(const Norm& norm);
NormedRoute route_of(const Norm& norm, const Weight& router, const Weight& bias,
                     const RouterShape& shape, Routing out);
void norm_and_route(const Context& context, const NormedRoute& route);

}  // namespace nibble::cuda
