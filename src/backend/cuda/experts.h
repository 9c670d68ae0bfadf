// experts: the routed experts' products.
#pragma once

#include <memory>
#include <optional>

#include "backend/backend.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/route.h"
#include "backend/cuda/rows.h"
#include "backend/cuda/weights.h"

namespace nibble::cuda {

// Use::kExperts and Use::kGatedExperts alike.
std::shared_ptr<const void> upload_experts(const Uploads& to, const Weight& host);

// out[t] = sum over k of weights[t, k] * down[e] silu_mul(gate_up[e] x[t]), e = experts[t, k]
// x [T, D] BF16 or F32 (rounded to BF16 first), out [T, D] BF16 or F32. The routing is read on the
// card. Returns what is left to be done before any other operation: combine_slots() or
// add_rms_norm() with it.
std::optional<SlotSums> experts(const Context& context, Tensor x, const Routing& routing,
                                const Weight& gate_up, const Weight& down, Tensor out);

// Whether x and routing, which the route gives, can be made by experts' own first kernel.
bool can_route_in_experts(const Context& context, const NormedRoute& route, Tensor x,
                          const Routing& routing, const Weight& gate_up);
// Both.
std::optional<SlotSums> route_and_experts(const Context& context, const NormedRoute& route,
                                          const Weight& gate_up, const Weight& down, Tensor out);

void combine_slots(const Context& context, const SlotSums& sums);

}  // namespace nibble::cuda
