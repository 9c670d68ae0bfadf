// experts for one row (experts.h's formula, stream.cuh's tiling), both halves in one kernel: a
// hand-over between two takes longer, and the second could not fetch its weights meanwhile.
//
//   gate_up  an item = a slot's expert x a tile; a block takes every so many-th item. Shared
//            experts come first: their weights are known before the routing is.
//   down     a block = a tile of outputs, for all slots, once all blocks have done their gate_up;
//            then the sum over the slots
//
// No more blocks are launched than are there at once, so that some may wait for the others.
#include <algorithm>
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
  float* weights = nullptr;
};

__host__ __device__ size_t slot_bytes(int slots) {
  return size_t(slots) * (sizeof(int) + sizeof(float));
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
    for (int slot = int(threadIdx.x); slot < slots.count; slot += int(blockDim.x)) {
      own.experts[slot] = __ldcg(slots.experts + slot);
      own.weights[slot] = __ldcg(slots.weights + slot);
    }
    __syncthreads();
  }
  __device__ Activations begin() const { return x; }
  __device__ void finish(Cursor at, int tile, int i, int, float low, float high) const {
    inner[slot(at.place) * inner_stride + tile * 8 + i] = from_float<bf16>(silu(low) * high);
  }
};

// Blocks that have come to a place, and those that have gone on; 0 between launches.
struct Gate {
  unsigned* counts = nullptr;  // [2]

  // By all threads of a block.
  __device__ void arrive() const {
    __syncthreads();
    if (threadIdx.x > 0) return;
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counts) : "memory");
  }
  // Until all blocks have arrived; `waiting` of them wait. What they have written can be read.
  __device__ void wait(unsigned waiting) const {
    if (threadIdx.x == 0) {
      unsigned arrived = 0;
      while (arrived < gridDim.x) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                     : "=r"(arrived)
                     : "l"(counts)
                     : "memory");
      }
      if (atomicAdd(counts + 1, 1u) == waiting - 1) counts[0] = 0, counts[1] = 0;
    }
    __syncthreads();
  }
};

struct DownWork {
  using Cursor = int;  // the slot

  SharedSlots own;
  Gate gate;
  unsigned waiting;  // blocks at the gate; 0: it has been passed
  const Activations& inner;
  float* products;  // [slots, 16 tiles_a_block]
  int tiles_a_block, first_tile;

  __device__ Cursor next(Cursor at, int items) const { return at + items; }
  __device__ int matrix(Cursor at) const { return own.experts[at]; }
  __device__ int tile(Cursor) const { return first_tile; }
  __device__ int columns(Cursor) const { return 1; }
  __device__ int input_row(Cursor at, int) const { return at; }
  __device__ int items_known() const { return INT_MAX / kMaxWarps; }
  __device__ void learn_items() const {}
  __device__ Activations begin() const {
    if (waiting > 0) gate.wait(waiting);
    return inner;
  }
  __device__ void finish(Cursor at, int tile, int i, int, float low, float high) const {
    float* to = products + (at * tiles_a_block + tile - first_tile) * kTileRows + i;
    to[0] = low;
    to[8] = high;
  }
};

// Tiles that a block takes at once.
struct Together {
  int gate_up = 0, down = 0;
};

template <typename GateUnit, typename DownUnit>
struct RowShape {
  using GateUp = StreamShape<GateUnit, 1>;
  using Down = StreamShape<DownUnit, 1>;
  static constexpr int kBlocks = std::min(GateUp::kBlocks, Down::kBlocks);

  static __host__ __device__ constexpr size_t stream_bytes() {
    return GateUp::shared_bytes(kMaxWarps) > Down::shared_bytes(kMaxWarps)
               ? GateUp::shared_bytes(kMaxWarps)
               : Down::shared_bytes(kMaxWarps);
  }
};

template <typename GateUnit, typename DownUnit>
__global__ void __launch_bounds__(kMaxWarps* kWarp, RowShape<GateUnit, DownUnit>::kBlocks)
    experts_row_kernel(PackedMatrices gate_up, PackedMatrices down, Activations x, Slots slots,
                       Activations inner, Results out, Gate gate, Together together) {
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  auto* after = shared + RowShape<GateUnit, DownUnit>::stream_bytes();
  const SharedSlots own{reinterpret_cast<int*>(after),
                        reinterpret_cast<float*>(after) + slots.count};
  float* products = own.weights + slots.count;

  const int block = int(blockIdx.x), blocks = int(gridDim.x);
  const int items_a_place = (gate_up.tiles + together.gate_up - 1) / together.gate_up;
  const int items = slots.count * items_a_place;
  const GateUpWork first_half{.w = gate_up,
                              .slots = slots,
                              .own = own,
                              .x = x,
                              .inner = static_cast<bf16*>(const_cast<void*>(inner.data)),
                              .inner_stride = inner.stride,
                              .tiles_an_item = together.gate_up,
                              .tiles_a_place = items_a_place * together.gate_up};
  stream_products<GateUnit, 1>(
      gate_up, first_half, {block / items_a_place, block % items_a_place * together.gate_up},
      items > block ? (items - block + blocks - 1) / blocks : 0, together.gate_up, shared);
  gate.arrive();

  const int groups = (down.tiles + together.down - 1) / together.down;
  const int outputs = together.down * kTileRows;
  for (int group = block; group < groups; group += blocks) {
    const DownWork second_half{.own = own,
                               .gate = gate,
                               .waiting = group == block ? unsigned(min(groups, blocks)) : 0,
                               .inner = inner,
                               .products = products,
                               .tiles_a_block = together.down,
                               .first_tile = group * together.down};
    stream_products<DownUnit, 1>(down, second_half, 0, slots.count, together.down, shared);
    __syncthreads();
    for (int e = int(threadIdx.x); e < outputs; e += int(blockDim.x)) {
      const int tile = second_half.first_tile + e / kTileRows;
      const int row = tile < down.tiles ? row_of(down, tile, e % kTileRows) : -1;
      if (row < 0) continue;
      store(
          out, 0, row,
          sum_of_slots([&](int k) { return own.weights[k]; }, products + e, outputs, slots.count));
    }
    __syncthreads();
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
  const Together together{tiles_together(gate_up), tiles_together(down)};
  const int warps = std::max(together.gate_up * gate_up.slices, together.down * down.slices);
  with_unit(gate_up.format, [&]<typename GateUnit>(GateUnit) {
    with_unit(down.format, [&]<typename DownUnit>(DownUnit) {
      const auto kernel = experts_row_kernel<GateUnit, DownUnit>;
      const size_t products = size_t(slots.count * together.down * kTileRows) * sizeof(float);
      const size_t shared_bytes =
          RowShape<GateUnit, DownUnit>::stream_bytes() + slot_bytes(slots.count) + products;
      allow_shared(kernel, shared_bytes);
      int blocks = 0;
      CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, warps * kWarp,
                                                               shared_bytes));
      launch(context,
             {.blocks = {unsigned(blocks * context.device.num_processors)},
              .threads = warps * kWarp,
              .shared_bytes = shared_bytes},
             kernel, gate_up, down, x, slots, inner, out, Gate{context.counters}, together);
    });
  });
}

}  // namespace nibble::cuda
