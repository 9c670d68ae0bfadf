// Multi-head latent attention over the paged latent cache, and the layout of kv_b on the card.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/weights.h"

namespace nibble::cuda {

// Use::kLatentUp: kv_b.
std::shared_ptr<const void> upload_latent_up(const Uploads& to, const Weight& host);

// Segments, positions and pages are those of context.step. kv [T, latent + rope] BF16; the gain as
// upload_rows() leaves it.
void mla_store(const Context& context, Tensor kv, const Weight& gain, const MlaShape& shape,
               const KvLayer& cache);

// q [T, heads * query_dim], out [T, heads * value_dim], BF16. Grids depend on the sizes in
// context.step alone, so that a recorded step holds for other contexts within length_bound.
void mla_attention(const Context& context, Tensor q, const Weight& kv_b, const MlaShape& shape,
                   const KvLayer& cache, Tensor out);

}  // namespace nibble::cuda
