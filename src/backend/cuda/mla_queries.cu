// One row's latent queries from its latent on: the norm, q_b, and mla_absorb.cu's formula, in one
// kernel, which spares the hand-over between two.
//
// A cluster of 8 blocks a head: a block makes the norm for itself and 32 of the head's 256 queries
// (row.cuh's tiling, a unit a warp), sends those that pass through kv_b to the other blocks, or
// rotates them, and then absorbs 64 columns of the latent, in the order of sums of mla_absorb.cu.
// All weights are fetched, and q_b's decoded, before the predecessor has ended; kv_b's are decoded
// while the queries are on their way. One more cluster stores the row.
//
// H100 80GB HBM3, NVFP4, 20 heads, in a step: 3.8 us from its wait to the next kernel's, by marks
// that cost some of it, where norm with q_b and absorbing took 5.2; its 3.3 MB would take 1.1. Most
// blocks begin only when q_a's leave, and wait 1.5 us after the first do.
#include "backend/cuda/bulk.cuh"
#include "backend/cuda/dtypes.h"
#include "backend/cuda/mla_stages.h"
#include "backend/cuda/mla_store.cuh"
#include "backend/cuda/norm_row.cuh"
#include "backend/cuda/row.cuh"

namespace nibble::cuda {
namespace {

constexpr int kTogether = 2;  // tiles of q_b, a block
constexpr int kOwnQueries = kTogether * kTileRows;
constexpr int kCluster = kQuery / kOwnQueries;
constexpr int kNopeBlocks = kNope / kOwnQueries;  // the others have the rope's
constexpr int kColumns = kLatent / kCluster;      // of the latent, a block
constexpr int kSlices = 4;                        // of kv_b's rows, as in mla_absorb.cu
constexpr int kSliceSteps = kNope / kSlices / 16;
static_assert(kColumns == 64 && kOwnQueries == kWarp && kNope % kOwnQueries == 0);

using Up = UpRows<KvFormat::kNvfp4>;

struct RowQueries {
  int heads = 0;
  int items = 1;  // of a block; not a constant: what a branch decodes, the assembler leaves there
  float scale = 0;
  bool permuted = false;  // latents of each 8 in the order of place_in_8()
};

// kv_b's part of a block: a head's rows of the nope part, 64 columns of each. Four rows lie
// together with room for another, which keeps a warp's reads in different banks.
struct UpPart {
  static constexpr int kRowBytes = kColumns / 2, kFourBytes = 5 * kRowBytes;
  alignas(16) uint8_t codes[kNope / 4 * kFourBytes];
  uint32_t block_scales[kNope];
  alignas(16) float row_scales[kNope];

  static __device__ __forceinline__ int place(int row) {
    return row / 4 * kFourBytes + row % 4 * kRowBytes;
  }

  // By all threads; neither committed nor waited for.
  __device__ __forceinline__ void fetch(const LatentUp& w, int head, int columns) {
    const int64_t first = int64_t(head) * kUpRows;
    for (int i = int(threadIdx.x); i < kNope * 2; i += int(blockDim.x)) {
      copy_async_16(codes + place(i / 2) + i % 2 * 16,
                    w.values + (first + i / 2) * (kLatent / 2) + columns / 2 + i % 2 * 16);
    }
    for (int i = int(threadIdx.x); i < kNope; i += int(blockDim.x)) {
      copy_async_4(block_scales + i, w.block_scales + (first + i) * (kLatent / 16) + columns / 16);
      copy_async_4(row_scales + i, w.row_scales + first + i);
    }
  }
  // Rows first .. first + 3, columns 8 g .. 8 g + 7.
  __device__ __forceinline__ Up::Across load(int first, int g) const {
    Up::Across raw{};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      raw.v[i] = reinterpret_cast<const uint32_t*>(codes + place(first) + i * kRowBytes)[g];
      raw.block_scales |= (block_scales[first + i] >> (g / 2 * 8) & 0xffu) << (8 * i);
    }
    return raw;
  }
};

struct QueriesShared {
  uint64_t arrived;  // a barrier: the head's queries have come
  alignas(16) uint32_t queries[kNope / 2];
  alignas(16) float partial[kSlices][kColumns + 8];
  float factors[kOwnQueries];     // of q_b's rows
  float2 turns[kOwnQueries / 2];  // of pairs of the rope's queries
  UpPart up;
  StoreShared store;
};

// q_b for row.cuh; what it finishes goes where it is wanted.
template <typename Out>
struct QueryWork {
  const PackedMatrices& w;
  const RowPart& own;
  SharedNorm<bf16>& norm;
  QueriesShared& shared;
  float *sums, *added;  // see norm_row()
  bf16* inputs;
  int head, rank;
  bf16* q;      // of all heads
  Out* latent;  // so the latent queries
  float scale;
  const Rope& rope;
  int position;

  using Spot = const uint8_t*;
  __device__ __forceinline__ Spot spot(int, unsigned bytes) const {
    const int tile = (head * kCluster + rank) * kTogether + own.part;
    return w.data + size_t(unsigned(tile)) * w.tile_bytes + bytes;
  }
  __device__ __forceinline__ const uint8_t* address_of(Spot spot, bool) const { return spot; }
  static constexpr bool kAllKnown = true;
  static constexpr int kSpareBytes = 0;
  __device__ __forceinline__ int items_known() const { return 1; }
  __device__ __forceinline__ void all_fetched() const {}
  __device__ __forceinline__ void begin(uint8_t*, int) {
    const int thread = int(threadIdx.x);
    if (thread < kOwnQueries / 2 && rank >= kNopeBlocks) {
      const int pair = (rank - kNopeBlocks) * (kOwnQueries / 2) + thread;
      shared.turns[thread] = turn_of(rope, position, pair);
    }
    const Columns<float> gains = gains_of_thread(norm.rows);
    wait_for_predecessor();
    norm.make(gains, sums, added, inputs);
  }
  __device__ __forceinline__ void meet() const {
    wait_for_cluster();  // the others are there
    __syncthreads();
  }
  __device__ __forceinline__ const bf16* columns(int) const {
    return inputs + own.first_unit * Nvfp4Unit::kInputs;
  }
  __device__ __forceinline__ float factor(int, int part, int i) const {
    return shared.factors[part * kTileRows + i];
  }
  __device__ __forceinline__ void finish(int, int, int, float product) const {
    const int lane = int(threadIdx.x), first = rank * kOwnQueries;
    const bf16 own_query = from_float<bf16>(product);
    q[head * kQuery + first + lane] = own_query;
    const uint32_t bits = __bfloat16_as_ushort(own_query);
    const uint32_t other = __shfl_xor_sync(0xffffffffu, bits, 1);
    const uint32_t pair = lane % 2 == 0 ? bits | other << 16 : other | bits << 16;
    const int place = (first + lane) / 2;
    if (rank >= kNopeBlocks) {
      const float2 x = unpack(pair, bf16());
      const float2 turned = rotate(shared.turns[lane / 2], x.x, x.y);
      if (lane % 2 == 0) {
        reinterpret_cast<uint32_t*>(latent + head * kRecord + kLatent)[place - kNope / 2] =
            pack(turned.x * scale, turned.y * scale, Out());
      }
      return;
    }
#if __CUDA_ARCH__ >= 900
#pragma unroll
    for (int i = 0; i < kCluster / 2; ++i) {
      send_to_block(shared.queries + place, &shared.arrived,
                    unsigned(lane % 2 * (kCluster / 2) + i), pair);
    }
#endif
  }
};

// kv_b's products, by the last kSlices warps of a block, of which the first stores them.
template <typename Out>
__device__ __forceinline__ void absorb_columns(QueriesShared& shared, float scale, bool permuted,
                                               Out* latent) {
  const int warp = int(threadIdx.x) / kWarp - (int(blockDim.x) / kWarp - kSlices);
  const int lane = int(threadIdx.x) % kWarp, g = lane / 4, t = lane % 4;
  if (warp >= 0) {
    const int first = warp * kSliceSteps * 16 + 4 * t;
    uint32_t a[kSliceSteps][4][4];
    float4 row_scales[kSliceSteps];
#pragma unroll
    for (int s = 0; s < kSliceSteps; ++s) {
      Up::decode(shared.up.load(first + 16 * s, g), a[s]);
      row_scales[s] = *reinterpret_cast<const float4*>(shared.up.row_scales + first + 16 * s);
    }
    wait_for_phase(&shared.arrived, 0);
    float acc[4][4] = {};
#pragma unroll
    for (int s = 0; s < kSliceSteps; ++s) {
      const uint2 four = *reinterpret_cast<const uint2*>(shared.queries + (first + 16 * s) / 2);
      const float2 low = unpack(four.x, bf16()), high = unpack(four.y, bf16());
      const float4 f = row_scales[s];
      const uint32_t factor[2] = {pack(low.x * f.x, low.y * f.y, Up::Value()),
                                  pack(high.x * f.z, high.y * f.w, Up::Value())};
#pragma unroll
      for (int j = 0; j < 4; ++j) multiply(acc[j], a[s][j], factor, Up::Value());
    }
    if (t == 0) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        *reinterpret_cast<float2*>(&shared.partial[warp][8 * g + 2 * j]) =
            make_float2(acc[j][0], acc[j][2]);
      }
    }
  } else {
    wait_for_phase(&shared.arrived, 0);  // a block that others still send to must be there
  }
  __syncthreads();
  if (warp != 0) return;
  const int low = permuted ? lane / 4 * 8 + lane % 4 : 2 * lane, high = low + (permuted ? 4 : 1);
  float y[2] = {};
#pragma unroll
  for (int s = 0; s < kSlices; ++s) y[0] += shared.partial[s][low], y[1] += shared.partial[s][high];
  reinterpret_cast<uint32_t*>(latent)[lane] = pack(y[0] * scale, y[1] * scale, Out());
}

// In a cluster of its own.
__device__ __forceinline__ void store_row_alone(const StoreRows<bf16>& store, const Rope& rope,
                                                const StepView& step, StoreShared& shared) {
  if (blockIdx.x % kCluster > 0 || threadIdx.x >= kStoreThreads) return wait_for_predecessor();
  const StorePlace place(store, rope, step, 0);
  wait_for_predecessor();
  store_row(store, 0, place, shared);
}

constexpr int kRegisters = 80;  // so that two blocks have room, or one and one of the kernel before
using Plan = AtOncePlan<1, 1, 1>;

size_t shared_bytes_of(const PackedMatrices& w, int warps) {
  const size_t cols = size_t(w.units) * Nvfp4Unit::kInputs;
  return Plan::ring_bytes<Nvfp4Unit>(warps) + row_sums_bytes(w, 1, kTogether) +
         cols * (sizeof(bf16) + sizeof(float)) + cols / kLaneColumns * sizeof(float);
}

// Blocks: a cluster a head, then one to store the row.
template <typename Out>
__global__ void __maxnreg__(kRegisters)
    queries_kernel(PackedMatrices w, SharedNorm<bf16> norm, LatentUp up, RowQueries row, Rope rope,
                   StepView step, StoreRows<bf16> store, bf16* q, Out* out) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ QueriesShared shared;
  let_successor_begin();
  const int head = int(blockIdx.x) / kCluster, rank = int(blockIdx.x) % kCluster;
  if (head == row.heads) return store_row_alone(store, rope, step, shared.store);
  const RowPart own(w);
  const int ring_bytes = int(Plan::ring_bytes<Nvfp4Unit>(int(blockDim.x) / kWarp));
  float* const sums = reinterpret_cast<float*>(memory + ring_bytes);
  float* const added = sums + kOwnQueries * sums_pitch(w.slices);
  float* const norm_sums = added + w.units * Nvfp4Unit::kInputs;
  // Nothing is waited for until q_b's part is on its way, too: blocks may begin late.
  const int position = step.positions[0];
  const int thread = int(threadIdx.x);
  shared.up.fetch(up, head, rank * kColumns);
  if (thread < kOwnQueries) {
    copy_async_4(shared.factors + thread,
                 w.factors + (head * kCluster + rank) * kOwnQueries + thread);
  }
  commit_copies();
  if (thread == 0) {
    start_barrier(&shared.arrived, 1);
    publish_barriers();
    arrive_expecting(&shared.arrived, kNope * int(sizeof(bf16)));
  }
  arrive_at_cluster();
  QueryWork<Out> work{
      .w = w,
      .own = own,
      .norm = norm,
      .shared = shared,
      .sums = norm_sums,
      .added = added,
      .inputs = reinterpret_cast<bf16*>(norm_sums + w.units * (Nvfp4Unit::kInputs / kLaneColumns)),
      .head = head,
      .rank = rank,
      .q = q,
      .latent = out,
      .scale = row.scale,
      .rope = rope,
      .position = position};
  multiply_row<Nvfp4Unit, Plan>(w, own, work, row.items, kTogether, memory, sums);
  absorb_columns(shared, row.scale * up.scale * Up::kScale, row.permuted,
                 out + head * kRecord + rank * kColumns);
#endif
}

}  // namespace

bool can_make_queries(const Context& context, const NormedLinear& normed, const LatentUp& kv_b,
                      const MlaShape& shape) {
  const auto& w = resident_as<PackedMatrices>(*normed.w);
  return context.device.has_clusters() && normed.norm.x.rows == 1 &&
         normed.norm.x.dtype == DType::kBF16 && normed.norm.delta.data == nullptr &&
         normed.out.dtype == DType::kBF16 && kv_b.format == KvFormat::kNvfp4 &&
         w.format == Format::kNvfp4 && w.rows == int64_t(shape.heads) * kQuery &&
         tiles_together(w) == kTogether && Plan::takes(w, 1);
}

void make_queries(const Context& context, const NormedLinear& normed, const LatentUp& kv_b,
                  const MlaShape& shape, LatentQueries out, const Store& store) {
  const auto& w = resident_as<PackedMatrices>(*normed.w);
  const int warps = kTogether * w.slices;
  const Grid grid{.blocks = {unsigned((shape.heads + 1) * kCluster)},
                  .threads = warps * kWarp,
                  .shared_bytes = shared_bytes_of(w, warps),
                  .cluster = kCluster};
  const RowQueries row{.heads = shape.heads,
                       .scale = query_scale(shape),
                       .permuted = out.format == KvFormat::kNvfp4};
  const auto run = [&]<typename Out>(Out* to) {
    const auto kernel = queries_kernel<Out>;
    allow_shared(kernel, grid.shared_bytes);
    launch(context, grid, kernel, w, SharedNorm<bf16>(normed.norm), kv_b, row,
           rope_of(shape.rope_dim, shape.rope_theta), context.step, store_rows_of<bf16>(store),
           static_cast<bf16*>(normed.out.data), to);
  };
  if (out.format == KvFormat::kBF16 || out.format == KvFormat::kF32) {
    run(static_cast<bf16*>(out.data));
  } else {
    run(static_cast<__half*>(out.data));
  }
}

}  // namespace nibble::cuda
