// The two products of experts, by number of rows; both give a row the same bits.
#pragma once

#include "backend/backend.h"
#include "backend/cuda/experts.h"
#include "backend/cuda/products.h"
#include "backend/cuda/route.h"

namespace nibble::cuda {

// Rows that experts_tiles() takes at once, which bounds its workspace.
inline constexpr int kMaxTiledRows = 8192;

// For one row of at most so many slots, and for 1 .. kMaxStreamedRows rows. inner: room for a BF16
// row a pair (row, slot).
inline constexpr int kMostRowSlots = 16;
// route: to be made first, for x and routing; or null.
void experts_row(const Context& context, const Activations& x, const Routing& routing,
                 const NormedRoute* route, const PackedMatrices& gate_up,
                 const PackedMatrices& down, int num_experts, const Activations& inner,
                 const Results& out);
// Whether it takes this one.
bool can_route_experts_row(const Context& context, const NormedRoute& route,
                           const PackedMatrices& gate_up);
void experts_stream(const Context& context, const Activations& x, const Routing& routing,
                    const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                    const Activations& inner, const Results& out);

// Faster where it can be had: NVFP4, some rows, and much shared memory. `memory`:
// experts_sweep_bytes(), in which the products stay that are left to add up.
bool can_sweep_experts(const Context& context, int64_t rows, int64_t pairs,
                       const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts);
size_t experts_sweep_bytes(int64_t pairs, const PackedMatrices& down);
SlotSums experts_sweep(const Context& context, const Activations& x, const Routing& routing,
                       const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                       const Activations& inner, const Results& out, void* memory);

// For 1 .. kMaxTiledRows rows. `memory`: experts_tiles_bytes(), which includes all that it needs.
size_t experts_tiles_bytes(const Tensor& x, int64_t pairs, const PackedMatrices& gate_up,
                           const PackedMatrices& down, int num_experts);
void experts_tiles(const Context& context, const Tensor& x, const Routing& routing,
                   const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                   const Results& out, void* memory);

}  // namespace nibble::cuda
