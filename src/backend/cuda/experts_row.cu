// experts for one row (experts.h's formula, row.cuh's tiling):
//
//   gate_up  an item = a slot's expert x the tiles of a block at once; a block takes every so
//            many-th item. Shared experts come first: their weights are known before the routing
//            is; down's are brought to L2 meanwhile.
//   down     a block = the tiles of outputs that it takes at once, an item = a slot; then the sum
//            over the slots
//
// gate_up may make the norm and the routing of the row, too (route_row.cuh), where a multiprocessor
// has much shared memory.
//
// Both leave each other room in a multiprocessor: down begins and fetches its weights once all of
// gate_up's are on their way, and not before, or they would come in between.
//
// NVFP4, hidden 2048, width 1536, 4 of 48 experts, on an H100 80GB HBM3 (backend_bench
// --benchmark_filter=wide): 15.0 us, 46 % of 3.1 TB/s, two hand-overs counted, without routing.
// Bound by instructions: one of each of gate_up's 32 warps on a multiprocessor takes eight cycles.
#include "backend/cuda/experts_products.h"
#include "backend/cuda/experts_work.cuh"
#include "backend/cuda/route_row.cuh"
#include "backend/cuda/row.cuh"

namespace nibble::cuda {
namespace {

// Units that a warp has under way.
template <typename Unit>
using GateUpPlan = RowPlan<Unit::kChunks == 1 ? 2 : 4>;
template <typename Unit>
using DownPlan = RowPlan<Unit::kChunks == 1 ? 2 : 4>;
// Where there is room for all of them.
using DownAtOnce = AtOncePlan<5, 1>;

// The row's slots; the last num_shared are the same for every row.
struct Slots {
  const int32_t* experts = nullptr;
  const float* weights = nullptr;
  int count = 0, num_experts = 0, num_shared = 0;

  __device__ __forceinline__ int chosen() const { return count - num_shared; }
  // Lane l of a warp: the expert of slot l.
  __device__ __forceinline__ int expert_of_lane() const {
    const int lane = int(threadIdx.x) % kWarp;
    return lane < chosen() ? __ldcg(experts + lane) : 0;
  }
  // By a whole warp that holds those, and by any thread.
  __device__ __forceinline__ int expert(int slot, int of_lane) const {
    const int expert = __shfl_sync(0xffffffffu, of_lane, slot % kWarp);
    return slot < chosen() ? expert : num_experts - count + slot;
  }
  __device__ __forceinline__ int expert(int slot) const {
    return slot < chosen() ? __ldcg(experts + slot) : num_experts - count + slot;
  }
};

// Which items a block of gate_up takes, every so many-th: the first `blocks` blocks `items` each,
// the others the rest. Where a multiprocessor takes two, the second begins only when the kernel
// before has left it, and then makes the routing, too; so it has less to do.
struct ItemShares {
  int blocks = 0, items = 0;

  // Of `all` items for `grid` blocks; `most`: what a block has room for.
  ItemShares(int all, int grid, int processors, int most) : blocks(grid) {
    items = (all + grid - 1) / grid;
    if (grid <= processors || items >= most || items < 2) return;
    blocks = grid / 2, ++items;
  }
  int most(int all, int grid) const {
    const int others = grid - blocks, rest = all - blocks * items;
    return others == 0 || rest <= 0 ? items : std::max(items, (rest + others - 1) / others);
  }

  __device__ __forceinline__ bool is_first() const { return int(blockIdx.x) < blocks; }
  __device__ __forceinline__ unsigned index(int item) const {
    const int block = int(blockIdx.x);
    return unsigned(is_first() ? block + item * blocks
                               : blocks * (items - 1) + block + item * (int(gridDim.x) - blocks));
  }
  // Of the block, up to `end`.
  __device__ __forceinline__ int count(int end) const {
    const int step = is_first() ? blocks : int(gridDim.x) - blocks;
    const int left = (is_first() ? min(end, blocks * items) : end) - int(index(0));
    return left <= 0 ? 0 : int(unsigned(left + step - 1) / unsigned(step));
  }
};

// Where gate_up's inputs come from, and the experts of a row: from memory, each warp bringing the
// columns of its slice ...
struct StoredSource {
  static constexpr int kSpareBytes = 0;
  using AtOnce = AtOncePlan<4, 1>;
  Activations x;

  static size_t shared_bytes(const PackedMatrices& w, int cols) {
    return size_t(tiles_together(w) * cols) * sizeof(bf16);
  }
  struct State {
    bf16* inputs;  // of the warp's slice
    int of_lane = 0;

    __device__ __forceinline__ State(const StoredSource&, uint8_t* shared, int first, int cols,
                                     int part)
        : inputs(reinterpret_cast<bf16*>(shared) + part * cols + first) {}
    __device__ __forceinline__ void begin(const StoredSource& source, const Slots& slots, int first,
                                          int columns, uint8_t*, int) {
      wait_for_predecessor();
      of_lane = slots.expert_of_lane();
      stage_columns<1>(static_cast<const uint4*>(source.x.data) + first / 8,
                       int(source.x.cols) - first, columns, reinterpret_cast<uint4*>(inputs));
      __syncwarp();
    }
    __device__ __forceinline__ const bf16* columns() const { return inputs; }
    __device__ __forceinline__ int expert(const Slots& slots, int slot) const {
      return slots.expert(slot);
    }
    __device__ __forceinline__ void let_successor_begin() const { cuda::let_successor_begin(); }
  };
};

// ... or made by the kernel itself.
struct RoutingSource {
  static constexpr int kSpareBytes = kRouteSpareBytes;
  using AtOnce = AtOncePlan<5, 1>;
  RowRoute route;

  static size_t shared_bytes(const PackedMatrices&, int) { return sizeof(RowRouteMemory); }
  struct State {
    RowRouteMemory& memory;
    int slice_first;
    int of_lane = 0;

    __device__ __forceinline__ State(const RoutingSource&, uint8_t* shared, int first, int, int)
        : memory(*reinterpret_cast<RowRouteMemory*>(shared)), slice_first(first) {}
    __device__ __forceinline__ void begin(RoutingSource& source, const Slots& slots, int, int,
                                          uint8_t* spare, int spare_pitch) {
      route_row(source.route, memory, spare, spare_pitch);
      of_lane = expert(slots, min(int(threadIdx.x) % kWarp, slots.count - 1));
    }
    __device__ __forceinline__ const bf16* columns() const { return memory.inputs + slice_first; }
    __device__ __forceinline__ int expert(const Slots&, int slot) const {
      return memory.experts[slot];
    }
    // What the successor reads of the routing before it waits must be there.
    __device__ __forceinline__ void let_successor_begin() const {
      if (blockIdx.x == 0) {
        if (threadIdx.x >= kWarp) return;
        __threadfence();
      }
      cuda::let_successor_begin();
    }
  };
};

template <typename Unit, typename Source>
struct GateUpWork {
  const PackedMatrices& w;
  const Slots& slots;
  const RowPart& own;
  Source& source;
  typename Source::State state;
  bf16* inner;
  int64_t inner_stride;
  int together, items_a_place;
  ItemShares shares;

  // An item's slot, and the first of its tiles.
  struct Place {
    int slot, tile;
  };
  // Of the thread's first result.
  int own_item = 0;
  Place own_place{};
  __device__ __forceinline__ int slot_of(int place) const {
    return place < slots.num_shared ? slots.chosen() + place : place - slots.num_shared;
  }
  __device__ __forceinline__ Place place_of(int item) const {
    const unsigned index = shares.index(item);
    const unsigned place = index / unsigned(items_a_place);
    return {slot_of(int(place)), int(index - place * unsigned(items_a_place)) * together};
  }
  __device__ __forceinline__ unsigned packed_tile(int expert, int tile) const {
    return unsigned(expert * w.tiles + min(tile, w.tiles - 1));
  }
  __device__ __forceinline__ void keep_own_place() {
    own_item = int(threadIdx.x) / (kTileRows * together);
    own_place = place_of(own_item);
  }
  __device__ __forceinline__ Place place_of_result(int item) const {
    if (item == own_item) return own_place;
    return place_of(item);
  }
  struct Spot {
    int slot;
    unsigned bytes;  // of the expert
  };
  __device__ __forceinline__ Spot spot(int item, unsigned bytes) const {
    const Place place = place_of(item);
    Spot spot{place.slot, unsigned(min(place.tile + own.part, w.tiles - 1)) * w.tile_bytes + bytes};
    compute_now(spot.slot), compute_now(spot.bytes);
    return spot;
  }
  __device__ __forceinline__ const uint8_t* address_of(Spot spot, bool has_begun) const {
    const int expert =
        has_begun ? state.expert(slots, spot.slot) : slots.num_experts - slots.count + spot.slot;
    return w.data + size_t(unsigned(expert)) * (unsigned(w.tiles) * w.tile_bytes) + spot.bytes;
  }
  static constexpr bool kAllKnown = false;
  __device__ __forceinline__ int items_known() const {
    return shares.count(slots.num_shared * items_a_place);
  }
  static constexpr int kSpareBytes = Source::kSpareBytes;
  __device__ __forceinline__ void begin(uint8_t* spare, int spare_pitch) {
    state.begin(source, slots, own.first_unit * Unit::kInputs, own.units * Unit::kInputs, spare,
                spare_pitch);
  }
  // Only now: down's weights come after these, and what it reads of the routing before it waits is
  // complete, since it begins after all blocks called this.
  __device__ __forceinline__ void all_fetched() const { state.let_successor_begin(); }
  __device__ __forceinline__ void meet() const { __syncthreads(); }
  __device__ __forceinline__ const bf16* columns(int) const { return state.columns(); }
  __device__ __forceinline__ float factor(int item, int part, int i) const {
    const Place place = place_of_result(item);
    const unsigned tile = packed_tile(state.expert(slots, place.slot), place.tile + part);
    return w.factors[size_t(tile) * kTileRows + i];
  }
  __device__ __forceinline__ void finish(int item, int part, int i, float product) const {
    const float high = __shfl_down_sync(0xffffffffu, product, kTileRows / 2);
    const Place place = place_of_result(item);
    if (part < 0 || i >= kTileRows / 2 || place.tile + part >= w.tiles) return;
    inner[place.slot * inner_stride + (place.tile + part) * (kTileRows / 2) + i] =
        from_float<bf16>(silu(product) * high);
  }
};

template <typename Unit>
struct DownWork {
  const PackedMatrices& w;
  const Slots& slots;
  const RowPart& own;
  const Activations& inner;
  bf16* staged;     // of the warp's slice: [slots, slice_columns]
  float* products;  // [slots, outputs of a block]
  int slice_columns;
  int together, first_tile;
  int of_lane = 0;

  __device__ __forceinline__ unsigned packed_tile(int expert, int part) const {
    return unsigned(expert * w.tiles + min(first_tile + part, w.tiles - 1));
  }
  struct Spot {
    int slot;
    unsigned bytes;
  };
  __device__ __forceinline__ Spot spot(int item, unsigned bytes) const { return {item, bytes}; }
  __device__ __forceinline__ const uint8_t* address_of(Spot spot, bool) const {
    const unsigned tile = packed_tile(slots.expert(spot.slot, of_lane), own.part);
    return w.data + size_t(tile) * w.tile_bytes + spot.bytes;
  }
  static constexpr bool kAllKnown = true;
  __device__ int items_known() const { return slots.count; }
  static constexpr int kSpareBytes = 0;
  __device__ __forceinline__ void begin(uint8_t*, int) {
    // A unit's columns of a slot are brought by as many lanes; where from, is known before the
    // wait.
    constexpr int kAtOnce = 3, kLanes = Unit::kInputs / 8, kUnits = kWarp / kLanes;
    static_assert(kLanes * kUnits == kWarp);
    const int lane = int(threadIdx.x) % kWarp, column = lane % kLanes * 8;
    const int units = slice_columns / Unit::kInputs,
              first = own.first_unit * Unit::kInputs + column;
    const auto* const inputs = static_cast<const bf16*>(inner.data) + first;
    int slot = 0, unit = lane / kLanes;  // of the lane's next columns
    int from[kAtOnce], to[kAtOnce];      // < 0: zeros; none
    const auto place = [&] {
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        while (unit >= units) unit -= units, ++slot;
        const int at = unit * Unit::kInputs;
        to[k] = slot < slots.count ? slot * slice_columns + at + column : -1;
        from[k] = to[k] >= 0 && first + at < inner.cols ? slot * int(inner.stride) + at : -1;
        unit += kUnits;
      }
    };
    place();
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) compute_now(from[k]), compute_now(to[k]);
    wait_for_predecessor();
    for (;;) {
      uint4 v[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        v[k] = make_uint4(0, 0, 0, 0);
        if (from[k] >= 0) v[k] = *reinterpret_cast<const uint4*>(inputs + from[k]);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (to[k] >= 0) *reinterpret_cast<uint4*>(staged + to[k]) = v[k];
      }
      if (slot >= slots.count) break;
      place();
    }
    __syncwarp();
  }
  __device__ void all_fetched() const {}
  __device__ __forceinline__ void meet() const {
    __syncthreads();
  }
  __device__ __forceinline__ const bf16* columns(int item) const {
    return staged + item * slice_columns;
  }
  __device__ __forceinline__ float factor(int item, int part, int i) const {
    return w.factors[size_t(packed_tile(slots.expert(item), part)) * kTileRows + i];
  }
  __device__ __forceinline__ void finish(int item, int part, int i, float product) const {
    if (part >= 0) products[(item * together + part) * kTileRows + i] = product;
  }
};

template <typename Unit, typename Plan, typename Source>
__global__ void __maxnreg__(Unit::kProducts > 1 ? 128 : 64)
    gate_up_row_kernel(PackedMatrices w, Source source, Slots slots, Activations inner,
                       int together, int sums_bytes, ItemShares shares, SharedExperts downs) {
  extern __shared__ __align__(16) uint8_t shared[];
  if (threadIdx.x == 0) downs.bring_to_cache();
  const int ring_bytes = int(Plan::template ring_bytes<Unit>(int(blockDim.x) / kWarp));
  const RowPart own(w);
  const int items_a_place = int(unsigned(w.tiles + together - 1) / unsigned(together));
  GateUpWork<Unit, Source> work{
      .w = w,
      .slots = slots,
      .own = own,
      .source = source,
      .state = {source, shared + ring_bytes + sums_bytes, own.first_unit * Unit::kInputs,
                w.units * Unit::kInputs, own.part},
      .inner = static_cast<bf16*>(const_cast<void*>(inner.data)),
      .inner_stride = inner.stride,
      .together = together,
      .items_a_place = items_a_place,
      .shares = shares};
  work.keep_own_place();
  multiply_row<Unit, Plan>(w, own, work, shares.count(slots.count * items_a_place), together,
                           shared, reinterpret_cast<float*>(shared + ring_bytes));
}

template <typename Unit, typename Plan>
__global__ void __maxnreg__(Unit::kProducts > 1 ? 128 : 80)
    down_row_kernel(PackedMatrices w, Activations inner, Slots slots, Results out, int together,
                    int sums_bytes) {
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  const int ring_bytes = int(Plan::template ring_bytes<Unit>(int(blockDim.x) / kWarp));
  const RowPart own(w);
  const int outputs = together * kTileRows, slice_columns = w.units_per_slice * Unit::kInputs;
  float* const products = reinterpret_cast<float*>(shared + ring_bytes + sums_bytes);
  auto* const staged = reinterpret_cast<bf16*>(products + slots.count * outputs);
  __shared__ float weights[kMostRowSlots];
  // Before the wait: gate_up let this one begin after its own predecessors had ended.
  DownWork<Unit> work{.w = w,
                      .slots = slots,
                      .own = own,
                      .inner = inner,
                      .staged = staged + int(threadIdx.x) / kWarp * slots.count * slice_columns,
                      .products = products,
                      .slice_columns = slice_columns,
                      .together = together,
                      .first_tile = int(blockIdx.x) * together,
                      .of_lane = slots.expert_of_lane()};
  if (int(threadIdx.x) < slots.count) weights[threadIdx.x] = __ldcg(slots.weights + threadIdx.x);
  multiply_row<Unit, Plan>(w, own, work, slots.count, together, shared,
                           reinterpret_cast<float*>(shared + ring_bytes));
  __syncthreads();
  const auto weight_of = [&](int slot) { return weights[slot]; };
  for (int e = int(threadIdx.x); e < outputs; e += int(blockDim.x)) {
    const int tile = work.first_tile + e / kTileRows;
    const int row = tile < w.tiles ? row_of(w, tile, e % kTileRows) : -1;
    if (row >= 0) store(out, 0, row, sum_of_slots(weight_of, products + e, outputs, slots.count));
  }
}

template <typename Unit, typename Plan, typename Source>
struct GateUpLaunch {
  static constexpr auto kKernel = gate_up_row_kernel<Unit, Plan, Source>;
  Grid grid;
  int together, items, sums_bytes = 0;
  ItemShares shares{0, 1, 1, 0};

  GateUpLaunch(const Context& context, const PackedMatrices& w, unsigned cluster,
               const Slots& slots)
      : together(tiles_together(w)), items(slots.count * int(blocks_for(w.tiles, together))) {
    const int warps = together * w.slices, processors = context.device.num_processors;
    grid = {.blocks = {cluster}, .threads = warps * kWarp, .cluster = cluster};
    const auto take_room = [&](unsigned blocks) {
      grid.blocks.x = blocks;
      shares = ItemShares(items, int(blocks), processors, Plan::kItems);
      sums_bytes = int(row_sums_bytes(w, shares.most(items, int(blocks)), together));
      grid.shared_bytes = Plan::template ring_bytes<Unit>(warps) + size_t(sums_bytes) +
                          Source::shared_bytes(w, w.units * Unit::kInputs);
      allow_shared(kKernel, grid.shared_bytes);
    };
    const unsigned least = blocks_for(items, most_row_items(w, together));
    const auto blocks_of = [&](unsigned resident) {
      return blocks_for(std::max(std::min(unsigned(items), resident), least), cluster) * cluster;
    };
    unsigned resident = unsigned(processors);
    if (cluster > 1) {
      take_room(blocks_of(2 * resident));
      resident = resident_clusters(context, grid, kKernel) * cluster;
    }
    take_room(blocks_of(resident));
  }
  int most_items() const { return shares.most(items, int(grid.blocks.x)); }

  void run(const Context& context, const PackedMatrices& w, const Source& source,
           const Slots& slots, const Activations& inner, const SharedExperts& downs) const {
    launch(context, grid, kKernel, w, source, slots, inner, together, sums_bytes, shares, downs);
  }
};

template <typename Unit, typename Source>
void launch_gate_up(const Context& context, const PackedMatrices& w, const Source& source,
                    unsigned cluster, const Slots& slots, const Activations& inner,
                    const SharedExperts& downs) {
  if constexpr (Unit::kChunks == 2) {
    using Plan = typename Source::AtOnce;
    const GateUpLaunch<Unit, Plan, Source> at_once(context, w, cluster, slots);
    if (Plan::takes(w, at_once.most_items())) {
      return at_once.run(context, w, source, slots, inner, downs);
    }
  }
  const GateUpLaunch<Unit, GateUpPlan<Unit>, Source> plain(context, w, cluster, slots);
  plain.run(context, w, source, slots, inner, downs);
}

template <typename Unit, typename Plan>
void launch_down_plan(const Context& context, const PackedMatrices& w, const Activations& inner,
                      const Slots& slots, const Results& out) {
  const auto kernel = down_row_kernel<Unit, Plan>;
  const int together = tiles_together(w), warps = together * w.slices;
  const size_t sums_bytes = row_sums_bytes(w, slots.count, together);
  const size_t slot_bytes = size_t(together * kTileRows) * sizeof(float) +
                            size_t(warps * w.units_per_slice * Unit::kInputs) * sizeof(bf16);
  const Grid grid =
      one_a_processor(context, {.blocks = {blocks_for(w.tiles, together)},
                                .threads = warps * kWarp,
                                .shared_bytes = Plan::template ring_bytes<Unit>(warps) +
                                                sums_bytes + size_t(slots.count) * slot_bytes});
  allow_shared(kernel, grid.shared_bytes);
  launch(context, grid, kernel, w, inner, slots, out, together, int(sums_bytes));
}

template <typename Unit>
void launch_down(const Context& context, const PackedMatrices& w, const Activations& inner,
                 const Slots& slots, const Results& out, bool much) {
  if constexpr (Unit::kChunks == 2) {
    if (much && DownAtOnce::takes(w, slots.count)) {
      return launch_down_plan<Unit, DownAtOnce>(context, w, inner, slots, out);
    }
  }
  launch_down_plan<Unit, DownPlan<Unit>>(context, w, inner, slots, out);
}

// For the rings of gate_up and down in one multiprocessor.
bool has_much_memory(const Device& device) {
  constexpr size_t kMuchBytes = 200 << 10;
  return device.shared_bytes >= kMuchBytes;
}

}  // namespace

bool can_route_experts_row(const Context& context, const NormedRoute& route,
                           const PackedMatrices& gate_up) {
  if (!has_much_memory(context.device) || !context.device.has_clusters()) return false;
  const Norm& norm = route.norm;
  const int steps = int(norm.x.cols) / kStepColumns;
  const int groups = tiles_together(gate_up) * gate_up.slices / std::max(steps, 1);
  const int slots = route.shape.top_k + route.shape.num_shared;
  return norm.x.rows == 1 && is_in_steps(norm) && norm.out.dtype == DType::kBF16 &&
         route.router->dtype == DType::kBF16 && route.shape.num_experts <= kRouteExperts &&
         slots <= kRouteSlots && gate_up.format == Format::kNvfp4 && gate_up.cols == norm.x.cols &&
         int(blocks_for(route.shape.num_experts, kRouteCluster)) <= kRouteEach * groups;
}

void experts_row(const Context& context, const Activations& x, const Routing& routing,
                 const NormedRoute* route, const PackedMatrices& gate_up,
                 const PackedMatrices& down, int num_experts, const Activations& inner,
                 const Results& out) {
  const bool much = has_much_memory(context.device);
  const Slots slots{.experts = static_cast<const int32_t*>(routing.experts.data),
                    .weights = static_cast<const float*>(routing.weights.data),
                    .count = int(routing.experts.cols),
                    .num_experts = num_experts,
                    .num_shared = routing.num_shared};
  const SharedExperts downs(down, num_experts, routing.num_shared);
  if (route != nullptr) {
    launch_gate_up<Nvfp4Unit>(context, gate_up, RoutingSource{RowRoute(*route)}, kRouteCluster,
                              slots, inner, downs);
  } else {
    with_unit(gate_up.format, [&]<typename Unit>(Unit) {
      launch_gate_up<Unit>(context, gate_up, StoredSource{x}, 1, slots, inner, downs);
    });
  }
  with_unit(down.format, [&]<typename Unit>(Unit) {
    launch_down<Unit>(context, down, inner, slots, out, much);
  });
}

}  // namespace nibble::cuda
