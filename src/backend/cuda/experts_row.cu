// experts for one row (experts.h's formula, stream.cuh's tiling):
//
//   gate_up  an item = a slot's expert x a tile; a block takes every so many-th item. Shared
//            experts come first: their weights are known before the routing is.
//   down     a block = a tile of outputs, for all slots; then the sum over the slots
//
// NVFP4, hidden 2048, width 1536, 4 of 48 experts, on an H100 80GB HBM3 (backend_bench
// --benchmark_filter=wide): 15.1 us, 47 % of 3.0 TB/s, two hand-overs counted. One kernel for both
// halves, which waits for all of its blocks in between, would take longer.
#include <climits>

#include "backend/cuda/experts_products.h"
#include "backend/cuda/experts_work.cuh"
#include "backend/cuda/stream.cuh"

namespace nibble::cuda {
namespace {

// The row's slots; the last num_shared are the same for every row.
struct Slots {
  const int32_t* experts = nullptr;
  const float* weights = nullptr;
  int count = 0, num_experts = 0, num_shared = 0;
};

// A block's copy of them, in shared memory.
struct SharedSlots {
  int* experts = nullptr;
  float* weights = nullptr;  // or none

  // By all threads of a block.
  __device__ __forceinline__ void fill(const Slots& slots) const {
    for (int slot = int(threadIdx.x); slot < slots.count; slot += int(blockDim.x)) {
      experts[slot] = __ldcg(slots.experts + slot);
      if (weights != nullptr) weights[slot] = __ldcg(slots.weights + slot);
    }
    __syncthreads();
  }
};

__host__ __device__ size_t slot_bytes(int slots) {
  return size_t(slots + 1) / 2 * 2 * (sizeof(int) + sizeof(float));  // aligned to 16
}

struct GateUpWork {
  struct Cursor {
    int place, tile;  // in the order of places: shared slots, then the others
  };

  const PackedMatrices& w;
  const Slots& slots;
  SharedSlots own;
  const Activations& x;
  bf16* inner;
  int64_t inner_stride;
  int tiles_an_item;
  int tiles_a_place;  // as many items have, some of them beyond the last

  __device__ int slot(int place) const {
    const int others = slots.count - slots.num_shared;
    return place < slots.num_shared ? others + place : place - slots.num_shared;
  }
  __device__ Cursor next(Cursor at, int items) const {
    const unsigned tile = unsigned(at.tile + items * int(gridDim.x) * tiles_an_item);
    const unsigned places_on = tile / unsigned(tiles_a_place);
    return {at.place + int(places_on), int(tile - places_on * unsigned(tiles_a_place))};
  }
  __device__ int matrix(Cursor at) const {
    if (at.place < slots.num_shared) return slots.num_experts - slots.num_shared + at.place;
    return own.experts[slot(at.place)];
  }
  __device__ int tile(Cursor at) const { return at.tile; }
  __device__ int columns(Cursor) const { return 1; }
  __device__ int input_row(Cursor, int) const { return 0; }
  // The first where it is a shared expert's.
  __device__ int items_known() const {
    return int(blockIdx.x) * tiles_an_item < tiles_a_place * slots.num_shared ? 1 : 0;
  }
  __device__ void learn_items() const {
    wait_for_predecessor();
    // Only now: what the successor reads of the routing before it waits is complete.
    let_successor_begin();
    own.fill(slots);
  }
  __device__ Activations begin() const { return x; }
  __device__ void finish(Cursor at, int tile, int i, int, float low, float high) const {
    inner[slot(at.place) * inner_stride + tile * 8 + i] = from_float<bf16>(silu(low) * high);
  }
};

struct DownWork {
  using Cursor = int;  // the slot

  const PackedMatrices& w;
  const Slots& slots;
  SharedSlots own;
  const Activations& inner;
  uint4* staged;      // of the warp's tile: [slots, inner.cols / 8]
  float* products;    // [slots, 16 tiles_a_block]
  int slice_columns;  // of a warp
  int tiles_a_block, first_tile;

  __device__ Cursor next(Cursor at, int items) const { return at + items; }
  __device__ int matrix(Cursor at) const { return own.experts[at]; }
  __device__ int tile(Cursor) const { return first_tile; }
  __device__ int columns(Cursor) const { return 1; }
  __device__ int input_row(Cursor at, int) const { return at; }
  __device__ int items_known() const { return INT_MAX / kMaxWarps; }
  __device__ void learn_items() const {}
  // A warp brings its columns of all slots' inputs into shared memory, all at once.
  __device__ Activations begin() const {
    constexpr int kAtOnce = 5;  // loads of a lane
    const int first = int(threadIdx.x) / kWarp % w.slices * slice_columns;
    const int pieces = inner.cols / 8, end = min(first + slice_columns, inner.cols) / 8;
    wait_for_predecessor();
    for (int piece = first / 8 + int(threadIdx.x) % kWarp; piece < end; piece += kWarp) {
      for (int slot = 0; slot < slots.count; slot += kAtOnce) {
        uint4 v[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          if (slot + k >= slots.count) break;
          v[k] = *reinterpret_cast<const uint4*>(static_cast<const bf16*>(inner.data) +
                                                 (slot + k) * inner.stride + piece * 8);
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          if (slot + k < slots.count) staged[(slot + k) * pieces + piece] = v[k];
        }
      }
    }
    __syncwarp();
    return {staged, inner.cols, slots.count, inner.cols};
  }
  __device__ void finish(Cursor at, int tile, int i, int, float low, float high) const {
    float* to = products + (at * tiles_a_block + tile - first_tile) * kTileRows + i;
    to[0] = low;
    to[8] = high;
  }
};

template <typename Unit>
__global__ void __launch_bounds__(kMaxWarps* kWarp, StreamShape<Unit, 1>::kBlocks)
    gate_up_row_kernel(PackedMatrices w, Activations x, Slots slots, Activations inner,
                       int together) {
  extern __shared__ __align__(16) uint8_t shared[];
  auto* after = shared + StreamShape<Unit, 1>::shared_bytes(int(blockDim.x) / kWarp);
  const int block = int(blockIdx.x), blocks = int(gridDim.x);
  const int items_a_place = (w.tiles + together - 1) / together;
  const int items = slots.count * items_a_place;
  const GateUpWork work{.w = w,
                        .slots = slots,
                        .own = {reinterpret_cast<int*>(after)},
                        .x = x,
                        .inner = static_cast<bf16*>(const_cast<void*>(inner.data)),
                        .inner_stride = inner.stride,
                        .tiles_an_item = together,
                        .tiles_a_place = items_a_place * together};
  stream_products<Unit, 1>(w, work, {block / items_a_place, block % items_a_place * together},
                           items > block ? (items - block + blocks - 1) / blocks : 0, together,
                           shared);
}

// One block a multiprocessor is all there are.
template <typename Unit>
__global__ void __launch_bounds__(kMaxWarps* kWarp, 1)
    down_row_kernel(PackedMatrices w, Activations inner, Slots slots, Results out, int together) {
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  auto* after = shared + StreamShape<Unit, 1>::shared_bytes(int(blockDim.x) / kWarp);
  auto* staged = reinterpret_cast<uint4*>(after + slot_bytes(slots.count));
  const int pieces = slots.count * inner.cols / 8, part = int(threadIdx.x) / kWarp / w.slices;
  const SharedSlots own{reinterpret_cast<int*>(after),
                        reinterpret_cast<float*>(after) + slots.count};
  const int outputs = together * kTileRows;
  const DownWork work{.w = w,
                      .slots = slots,
                      .own = own,
                      .inner = inner,
                      .staged = staged + part * pieces,
                      .products = reinterpret_cast<float*>(staged + together * pieces),
                      .slice_columns = w.units_per_slice * Unit::kInputs,
                      .tiles_a_block = together,
                      .first_tile = int(blockIdx.x) * together};
  // Before the wait: gate_up let this one begin after its own predecessors had ended.
  own.fill(slots);
  stream_products<Unit, 1>(w, work, 0, slots.count, together, shared);
  __syncthreads();
  for (int e = int(threadIdx.x); e < outputs; e += int(blockDim.x)) {
    const int tile = work.first_tile + e / kTileRows;
    const int row = tile < w.tiles ? row_of(w, tile, e % kTileRows) : -1;
    if (row < 0) continue;
    store(out, 0, row,
          sum_of_slots([&](int k) { return own.weights[k]; }, work.products + e, outputs,
                       slots.count));
  }
}

}  // namespace

void experts_row(const Context& context, const Activations& x, const Routing& routing,
                 const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                 const Activations& inner, const Results& out) {
  const Slots slots{.experts = static_cast<const int32_t*>(routing.experts.data),
                    .weights = static_cast<const float*>(routing.weights.data),
                    .count = int(routing.experts.cols),
                    .num_experts = num_experts,
                    .num_shared = routing.num_shared};
  with_unit(gate_up.format, [&]<typename Unit>(Unit) {
    using Shape = StreamShape<Unit, 1>;
    const auto kernel = gate_up_row_kernel<Unit>;
    const int together = tiles_together(gate_up), warps = together * gate_up.slices;
    const size_t shared_bytes = Shape::shared_bytes(warps) + slot_bytes(slots.count);
    allow_shared(kernel, shared_bytes);
    launch(context,
           {.blocks = {unsigned(context.device.num_processors * Shape::kBlocks)},
            .threads = warps * kWarp,
            .shared_bytes = shared_bytes},
           kernel, gate_up, x, slots, inner, together);
  });
  with_unit(down.format, [&]<typename Unit>(Unit) {
    const auto kernel = down_row_kernel<Unit>;
    const int together = tiles_together(down), warps = together * down.slices;
    const size_t row_bytes =
        together * (size_t(inner.cols) * sizeof(bf16) + kTileRows * sizeof(float));
    const size_t shared_bytes = StreamShape<Unit, 1>::shared_bytes(warps) +
                                slot_bytes(slots.count) + size_t(slots.count) * row_bytes;
    allow_shared(kernel, shared_bytes);
    launch(context,
           {.blocks = {blocks_for(down.tiles, together)},
            .threads = warps * kWarp,
            .shared_bytes = shared_bytes},
           kernel, down, inner, slots, out, together);
  });
}

}  // namespace nibble::cuda
