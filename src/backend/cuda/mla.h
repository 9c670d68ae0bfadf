// Multi-head latent attention over the paged latent cache, and the layout of kv_b on the card.
//
// Rows of segments that are not `expanded` are computed absorbed: queries and outputs pass through
// kv_b, keys and values are the cached latents (mla_absorb.cu, mla_split.cu, mla_join.cu). Segments
// that are `expanded` bring the records through kv_b first, slab by slab, and attend to whole keys
// and values (mla_expand.cu, mla_prefill.cu). A row's bits depend on its position, on the records
// up to it and on that flag, not on the other rows of its segment or of the batch.
//
// Shapes: nope 192, rope 64, value 256, latent 512 (GLM-4.7-Flash), any number of heads.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/weights.h"

namespace nibble::cuda {

// Use::kLatentUp: NVFP4 as it is, all else as BF16; row-major.
std::shared_ptr<const void> upload_latent_up(const Uploads& to, const Weight& host);

// A call of mla_store: kv [T, latent + rope] BF16 or F32, the gain as upload_rows() leaves it.
struct Store {
  Tensor kv{};
  const float* gain = nullptr;
  MlaShape shape{};
  KvLayer cache{};
};
Store store_of(Tensor kv, const Weight& gain, const MlaShape& shape, const KvLayer& cache);

// Positions and pages are those of context.step.
void mla_store(const Context& context, const Store& store);

// Whether mla_attention() takes the batch's store along: few rows, none of them expanded.
bool can_store_and_attend(const Store& store, const Batch& batch);

// q [T, heads * query_dim], out [T, heads * value_dim], BF16 or F32. `batch` is that of
// context.step. Where every segment is one row that is not expanded, grids depend on sizes in
// context.step alone, so that a recorded step holds for all contexts within its length_bound.
// `store`: to be done before, by kernels of its own or by the first of these; so with what makes q.
void mla_attention(const Context& context, Tensor q, const Weight& kv_b, const MlaShape& shape,
                   const Batch& batch, const KvLayer& cache, Tensor out,
                   const Store* store = nullptr, const NormedLinear* queries = nullptr);
// Whether it may take along what makes q, which still depends on the rest: q_b of one row.
bool may_be_queries(const NormedLinear& linear);

}  // namespace nibble::cuda
