#include "backend/cuda/experts.h"

#include <algorithm>

#include "backend/cuda/experts_products.h"

namespace nibble::cuda {
namespace {

Tensor rows_of(const Tensor& t, int64_t first, int64_t count) {
  return {static_cast<char*>(t.data) + size_t(first * t.stride) * dtype_bytes(t.dtype), t.dtype,
          count, t.cols, t.stride};
}

size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

void check(const Tensor& x, const Weight& gate_up, const Weight& down, const Tensor& out) {
  CHECK(gate_up.rows == 2 * down.cols && gate_up.cols == x.cols && down.rows == out.cols &&
            gate_up.count == down.count,
        "%s", gate_up.name.c_str());
}

// A step of at most kMaxTiledRows rows. route: see experts_row().
std::optional<SlotSums> experts_of_rows(const Context& context, Tensor x, const Routing& routing,
                                        const NormedRoute* route, const Weight& gate_up,
                                        const Weight& down, Tensor out) {
  const auto& gates = resident_as<PackedMatrices>(gate_up);
  const auto& downs = resident_as<PackedMatrices>(down);
  const int num_experts = int(gate_up.count);
  const int64_t pairs = x.rows * routing.experts.cols;
  const Results results{out.data, out.stride, out.dtype == DType::kF32, false};
  if (x.rows > kMaxStreamedRows) {
    void* memory = context.workspace.fit(experts_tiles_bytes(x, pairs, gates, downs, num_experts));
    experts_tiles(context, x, routing, gates, downs, num_experts, results, memory);
    return std::nullopt;
  }
  // Columns beyond the width are products of padding rows: zeros.
  const int inner_cols = gates.tiles * kTileRows / 2;
  const size_t inner_bytes = aligned(size_t(pairs * inner_cols) * sizeof(uint16_t));
  const bool sweeps = can_sweep_experts(context, x.rows, pairs, gates, downs, num_experts);
  const size_t input_bytes = aligned(inputs_bytes(x));
  auto* memory = static_cast<char*>(context.workspace.fit(
      inner_bytes + input_bytes + (sweeps ? experts_sweep_bytes(pairs, downs) : 0)));
  const Activations inner{memory, inner_cols, int(pairs), inner_cols};
  const Activations inputs = inputs_of(context, x, memory + inner_bytes);
  if (sweeps) {
    return experts_sweep(context, inputs, routing, gates, downs, num_experts, inner, results,
                         memory + inner_bytes + input_bytes);
  }
  if (x.rows == 1 && pairs <= kMostRowSlots) {
    experts_row(context, inputs, routing, route, gates, downs, num_experts, inner, results);
  } else {
    experts_stream(context, inputs, routing, gates, downs, num_experts, inner, results);
  }
  return std::nullopt;
}

}  // namespace

std::shared_ptr<const void> upload_experts(const Uploads& to, const Weight& host) {
  return pack_matrices(to, host, /*halves=*/true);
}

std::optional<SlotSums> experts(const Context& context, Tensor x, const Routing& routing,
                                const Weight& gate_up, const Weight& down, Tensor out) {
  check(x, gate_up, down, out);
  std::optional<SlotSums> left;
  for (int64_t first = 0; first < x.rows; first += kMaxTiledRows) {
    const int64_t count = std::min<int64_t>(kMaxTiledRows, x.rows - first);
    const Routing part{rows_of(routing.experts, first, count),
                       rows_of(routing.weights, first, count), routing.num_shared};
    if (left) combine_slots(context, *left);
    left = experts_of_rows(context, rows_of(x, first, count), part, nullptr, gate_up, down,
                           rows_of(out, first, count));
  }
  return left;
}

bool can_route_in_experts(const Context& context, const NormedRoute& route, Tensor x,
                          const Routing& routing, const Weight& gate_up) {
  return route.norm.out.data == x.data && route.norm.out.rows == x.rows &&
         route.out.experts.data == routing.experts.data &&
         can_route_experts_row(context, route, resident_as<PackedMatrices>(gate_up));
}

std::optional<SlotSums> route_and_experts(const Context& context, const NormedRoute& route,
                                          const Weight& gate_up, const Weight& down, Tensor out) {
  check(route.norm.out, gate_up, down, out);
  return experts_of_rows(context, route.norm.out, route.out, &route, gate_up, down, out);
}

}  // namespace nibble::cuda
