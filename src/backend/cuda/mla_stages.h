// The stages that mla_attention is made of, one .cu file each. Rows are counted in the batch.
#pragma once

#include "backend/backend.h"
#include "backend/cuda/launch.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/mla.h"
#include "backend/cuda/mla_up.cuh"

namespace nibble::cuda {

struct RowRange {
  int first = 0, count = 0;
};

// Latent queries [count, heads, latent + rope], 16-bit of the cache's product type: through kv_b's
// key half, rotated, times the softmax's scale in powers of two.
struct LatentQueries {
  void* data = nullptr;
  KvFormat format = KvFormat::kBF16;  // of the cache that they are for
};

// Partial outputs of spans of positions, [count, heads, max_splits]: FP16 averages of the latents,
// and log2 of the sum of 2^score. Row r has splits_of(position + 1) of them.
struct Partials {
  __half* values = nullptr;  // [..., latent]
  float* log_sums = nullptr;
  int max_splits = 0;
};

// Positions a split spans, for a row that attends to `length`: of the length alone, so that a row's
// bits are the same in any batch. A step of 64 while that gives at most 64 splits, then up to 128.
__host__ __device__ constexpr int split_span(int length) {
  const int steps = (length + 8191) / 8192;
  return length <= 4096 ? 64 : (steps < 2 ? 2 : steps) * 64;
}
__host__ __device__ constexpr int splits_of(int length) {
  return (length + split_span(length) - 1) / split_span(length);
}
constexpr int kMostSplits = 128;  // of any length
constexpr int kBlockSplits = 4;   // that are joined, and read, together
// The most splits of any length up to `bound`, in whole blocks.
int most_splits(int bound);

// The softmax's scale, for powers of two.
float query_scale(const MlaShape& shape);
// `store`: of the same rows, taken along; or null.
void absorb_queries(const Context& context, Tensor q, const LatentUp& kv_b, const MlaShape& shape,
                    RowRange rows, LatentQueries out, const Store* store);
// The same of one row, from the norm before q_b on; what these leave is left, too.
bool can_make_queries(const Context& context, const NormedLinear& normed, const LatentUp& kv_b,
                      const MlaShape& shape);
void make_queries(const Context& context, const NormedLinear& normed, const LatentUp& kv_b,
                  const MlaShape& shape, LatentQueries out, const Store& store);
void attend_splits(const Context& context, LatentQueries q, const MlaShape& shape, RowRange rows,
                   const KvLayer& cache, Partials out);
// Joins the splits of a row and brings them through kv_b's value half. `averages`: room for
// [count, heads, latent] of 16 bits.
void join_splits(const Context& context, Partials partials, const LatentUp& kv_b,
                 const MlaShape& shape, RowRange rows, void* averages, Tensor out);

// Expanded segments ------------------------------------------------------------------------------

// A slab is what is expanded at once: so many positions for a segment of `rows`, from a multiple
// of it on. A row's bits do not depend on it. Rows that need much room anyway (grouped experts)
// have few slabs, since each costs every row its way into the carry and back.
constexpr int slab_positions(int rows) {
  return rows < 4096 ? 4096 : rows / 4096 * 8192;
}

// Keys and values lie as products read them from shared memory: in panels of kPanelRows positions
// by 64 values, where piece i (16 bytes) of row r is at piece i ^ (r % 8). Positions up to whole
// panels repeat the last one.
inline constexpr int kPanelRows = 64, kPanel = kPanelRows * 64;
inline constexpr int kHeadPanels = kUpRows / 64;    // of a head: its keys' latent part, its values
inline constexpr int kExpandRows = 2 * kPanelRows;  // rows of room are multiples of it

struct Expanded {               // of a slab's positions
  bf16* latents = nullptr;      // [positions, latent]
  bf16* ropes = nullptr;        // [positions / kPanelRows] panels: every head's rope key
  bf16* keys_values = nullptr;  // [positions / kPanelRows, heads, kHeadPanels] panels
};

// Piece `piece` of a panel's row, in values.
__host__ __device__ constexpr int panel_offset(int row, int piece) {
  return row * 64 + (piece ^ (row % 8)) * 8;
}

// What a row has gathered from the slabs so far; used where there are several.
struct Carry {
  float* values = nullptr;  // [rows, heads, value]
  float* tops = nullptr;    // [rows, heads]: the largest score
  float4* sums = nullptr;   // [rows, heads]: the sum of 2^(score - top) over four lanes' columns
};

// out [rows, heads, nope + rope]: rotated, times the softmax's scale in powers of two.
void turn_queries(const Context& context, Tensor q, const MlaShape& shape, RowRange rows,
                  bf16* out);
// kv_b in BF16, without the scales that belong to its outputs.
void unpack_up(const Context& context, const LatentUp& kv_b, bf16* out);
// `pages`: the segment's page table on the card; `unpacked`: kv_b in BF16. Writes whole multiples
// of kExpandRows.
void expand_records(const Context& context, const KvLayer& cache, const int32_t* pages, int first,
                    int count, const LatentUp& kv_b, const bf16* unpacked, Expanded out);
// The product of expand_records; false where the card or the build has no such kernel.
bool expand_sm90(const Context& context, int count, const LatentUp& kv_b, const bf16* unpacked,
                 Expanded out);
// `count` positions from `first` on, for rows of a segment whose first has position `context`. A
// row that attends to later slabs is left in the carry, others go to `out`.
struct SlabRange {
  int first = 0, count = 0;
  int context = 0;
};
void attend_slab(const Context& context, const bf16* queries, const Expanded& slab,
                 const SlabRange& range, const MlaShape& shape, RowRange rows, Carry carry,
                 Tensor out);

}  // namespace nibble::cuda
