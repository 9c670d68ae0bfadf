// experts for several rows (experts.h's formula; sweep.cuh's tiling), both products in one kernel:
// the chosen experts' matrices stream once for each 8 of their rows, without a pause between
// gate_up and down.
//
// A chunk is up to 8 rows of an expert. A block takes its run of the line of all chunks' tiles, of
// gate_up and of down, for one half of the chunks and then for the other: gate_up, gate_up, down,
// down. So the rows that a down needs have been there for the time of another half, whichever
// blocks made them, and the rings never run dry.
//
// Before the routing is known, the experts that all rows take are brought to L2.
//
// All blocks must be there at once: one a multiprocessor, and none of a later kernel before all of
// them have begun.
//
// Hidden 2048, width 1536, 4 of 48 experts, on an H100 80GB HBM3 (backend_bench
// --benchmark_filter=wide/experts): 16 and 64 rows 78 and 102 us with the sums as a kernel, 79 and
// 81 % of 3.1 TB/s.
// A start that no other kernel can overlap is most of what is missing. More warps, more stages,
// bulk copies of matrices, or 16 rows by a decoded tile do not help.
#include <algorithm>

#include "backend/cuda/experts_chunks.cuh"
#include "backend/cuda/experts_products.h"
#include "backend/cuda/sweep.cuh"

namespace nibble::cuda {
namespace {

using Unit = Nvfp4Unit;
constexpr int kTiles = 2;  // a warp's at once
// Of a block, those that multiply: with the one that brings inputs, 128 registers each.
constexpr int kMostWarps = 15;
constexpr int kFewestWarps = 8;

using Inputs = StagedInputs<Unit>;

// Both products of one half of the chunks and of the other, in the order in which a block takes its
// share of each: of a half's gate_up, the rows are there long before its down.
struct Products {
  static constexpr int kParts = 4;
  static constexpr bool kIsOneGroup = false;
  struct Divisors {
    Divisor blocks, warps;        // warps: of a block, those that multiply
    Divisor items[2], slices[2];  // items a chunk, slices an item: of gate_up, of down
  };
  struct Cursor {
    bool is_down;
    int chunk, tile;
  };

  Chunks chunks;
  const PackedMatrices &gate_up, &down;
  const Divisors& divisors;
  bf16* inner;  // [pairs, inner_stride]
  int64_t inner_stride;
  float* products;  // [pairs, down.rows]

  static __device__ bool is_down(int part) { return part >= kParts / 2; }
  static __device__ int half(int part) { return part % (kParts / 2); }
  __device__ const PackedMatrices& matrices(int part) const {
    return is_down(part) ? down : gate_up;
  }
  __device__ const Divisor& slices(int part) const { return divisors.slices[is_down(part)]; }
  __device__ const Divisor& items(int part) const { return divisors.items[is_down(part)]; }
  // Items count from chunk 0's first on.
  __device__ int segment_of(int part, int item) const { return items(part).quotient(item); }
  __device__ Range own_items(int part) const {
    const int middle = chunks.count() / 2, each = items(part);
    const int first = half(part) == 0 ? 0 : middle * each;
    const int end = half(part) == 0 ? middle * each : chunks.count() * each;
    const auto boundary = [&](int block) {
      return first + divisors.blocks.quotient((end - first) * block);
    };
    const int own = boundary(int(blockIdx.x));
    return {own, boundary(int(blockIdx.x) + 1) - own};
  }

  __device__ Group first_group() const { return group_from(0, 0); }
  __device__ Group next_group(const Group& group) const { return group_from(group.part, group.to); }
  __device__ Cursor cursor_of(int part, int item) const {
    const int chunk = segment_of(part, item);
    return {is_down(part), chunk, (item - chunk * items(part)) * kTiles};
  }
  __device__ int matrix(Cursor at) const { return chunks.expert(at.chunk); }
  __device__ bool is_read_once(Cursor at) const { return chunks.is_alone(at.chunk); }
  __device__ int tile(Cursor at) const { return at.tile; }
  __device__ int columns(Cursor at) const { return chunks.columns(at.chunk); }
  __device__ int input_row(Cursor at, int n) const {
    return at.is_down ? chunks.pair(at.chunk, n) : chunks.row(at.chunk, n);
  }
  __device__ void begin() const {}
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    const int64_t pair = chunks.pair(at.chunk, n);
    if (!at.is_down) {
      inner[pair * inner_stride + tile * 8 + i] = from_float<bf16>(silu(low) * high);
      return;
    }
    float* to = products + pair * down.rows;
    const int first = row_of(down, tile, i), second = row_of(down, tile, i + 8);
    if (first >= 0) to[first] = low;
    if (second >= 0) to[second] = high;
  }

 private:
  // From `item` of the part on, or what is first behind it.
  __device__ Group group_from(int part, int item) const {
    for (; part < kParts; ++part, item = 0) {
      const Range own = own_items(part);
      const int from = max(own.first, item), end = own.first + own.count;
      if (from >= end) continue;
      const int segment = segment_of(part, from);
      const int to = min(end, (segment + Inputs::kSegments) * items(part));
      return {part, from, to, segment_of(part, to - 1) - segment + 1};
    }
    return {};
  }
};

// A way through a block's segments, in order.
class Segments {
 public:
  explicit __device__ Segments(const Products& work)
      : work_(work), group_(work.first_group()), item_(group_.from) {}

  __device__ bool is_done() const { return group_.segments == 0; }
  __device__ int part() const { return group_.part; }
  __device__ int chunk() const { return work_.segment_of(group_.part, item_); }
  __device__ int items() const { return end() - item_; }
  __device__ Products::Cursor cursor() const { return work_.cursor_of(group_.part, item_); }
  __device__ void advance() {
    item_ = end();
    if (item_ < group_.to) return;
    group_ = work_.next_group(group_);
    item_ = group_.from;
  }

 private:
  __device__ int end() const { return min(group_.to, (chunk() + 1) * work_.items(group_.part)); }

  const Products& work_;
  Group group_;
  int item_;
};

// The warp that brings inputs. Beside that it tells the other blocks which inner rows this one has
// made.
class Bringer {
 public:
  __device__ Bringer(const Products& work, const Activations& x, const Activations& inner,
                     int* made, Inputs& inputs)
      : work_(work), x_(x), inner_(inner), made_(made), inputs_(inputs), unannounced_(work) {}

  __device__ void bring_all() {
#pragma unroll 1
    for (Segments next(work_); !next.is_done(); next.advance()) {
      const bool is_down = Products::is_down(next.part());
      // What the buffer has been for; and, before it waits, what others may be waiting for.
      while (num_unannounced_ > 0 &&
             (num_held_ == inputs_.num_buffers() ||
              (is_down && Products::half(unannounced_.part()) <= Products::half(next.part())))) {
        announce();
      }
      if (is_down) wait_until_made(next.chunk());
      inputs_.bring(is_down ? inner_ : x_, work_.matrices(next.part()).units, work_, next.cursor());
      if (num_unannounced_ > 0 || !is_down) ++num_held_;
      if (!is_down) ++num_unannounced_;
    }
    while (num_unannounced_ > 0) announce();
  }

 private:
  __device__ void wait_until_made(int chunk) const {
    if (threadIdx.x % kWarp == 0) {
      const int all = work_.items(0);
      while (load_acquire(made_ + chunk) < all) __nanosleep(20);
    }
    __syncwarp();
  }
  // Of the oldest segment of gate_up: when all warps have left it, what they made of it has been
  // written.
  __device__ void announce() {
    inputs_.wait_until_left(buffer_);
    if (threadIdx.x % kWarp == 0) {
      __threadfence();
      atomicAdd(made_ + unannounced_.chunk(), unannounced_.items());
    }
    unannounced_.advance();
    buffer_ = buffer_ + 1 == inputs_.num_buffers() ? 0 : buffer_ + 1;
    --num_unannounced_, --num_held_;
  }

  const Products& work_;
  const Activations &x_, &inner_;
  int* made_;
  Inputs& inputs_;
  Segments unannounced_;     // the oldest
  int buffer_ = 0;           // its
  int num_unannounced_ = 0;  // segments of gate_up
  int num_held_ = 0;         // buffers from the oldest's on
};

using ExpertsSweep = Sweep<Unit, Inputs, Balanced, kTiles, Divisor>;

__global__ void __launch_bounds__((kMostWarps + 1) * kWarp, 1) experts_sweep_kernel(
    const __grid_constant__ PackedMatrices gate_up, const __grid_constant__ Activations x,
    const __grid_constant__ PackedMatrices down, const __grid_constant__ Activations inner,
    RoutedRows routed, float* products, int* made, int buffers,
    const __grid_constant__ Products::Divisors divisors, SharedExperts gates, SharedExperts downs) {
  extern __shared__ __align__(16) uint8_t shared[];
  if (threadIdx.x == 0) gates.bring_to_cache(), downs.bring_to_cache();
  const int most_units = max(gate_up.units, down.units), warps = divisors.warps;
  uint8_t* after = shared + ExpertsSweep::Shape::shared_bytes(warps);
  ExpertsSweep sweep(divisors.warps, shared);
  Inputs inputs(most_units, buffers, warps, after);
  auto* lists = reinterpret_cast<int*>(after + Inputs::shared_bytes(most_units, buffers));
  wait_for_predecessor();
  let_successor_begin();
  const Chunks chunks = make_many_chunks(routed, lists);  // where all threads meet
  const Products work{
      chunks,       gate_up, down, divisors, static_cast<bf16*>(const_cast<void*>(inner.data)),
      inner.stride, products};
  if (int(threadIdx.x) / kWarp == warps) return Bringer(work, x, inner, made, inputs).bring_all();
  sweep.run(work, inputs);
}

// Of a block: the warps that multiply, the buffers of inputs, and the shared memory that they take.
struct BlockPlan {
  int warps = 0, buffers = 0;
  size_t shared_bytes = 0;
};

// As many warps as shared memory holds; a third buffer where that costs none.
BlockPlan plan_of(const Context& context, const PackedMatrices& gate_up, const PackedMatrices& down,
                  int64_t pairs, int num_experts) {
  const auto plan_with = [&](int buffers) {
    const size_t other = ExpertsSweep::Shape::shared_bytes(0) +
                         Inputs::shared_bytes(std::max(gate_up.units, down.units), buffers) +
                         size_t(chunk_ints(int(pairs), num_experts)) * sizeof(int);
    const size_t each = ExpertsSweep::Shape::shared_bytes(1) - ExpertsSweep::Shape::shared_bytes(0);
    if (other > context.device.shared_bytes) return BlockPlan{};
    const int warps = std::min(kMostWarps, int((context.device.shared_bytes - other) / each));
    return BlockPlan{warps, buffers, other + warps * each};
  };
  const BlockPlan plan = plan_with(Inputs::kMostBuffers);
  return plan.warps == kMostWarps ? plan : plan_with(Inputs::kSegments);
}

// What Divisor asks for.
bool can_divide(const Context& context, const PackedMatrices& gate_up, const PackedMatrices& down,
                int64_t pairs, int num_experts) {
  const int64_t tiles = std::max(gate_up.tiles, down.tiles);
  const int64_t items = max_chunks(int(pairs), num_experts) * ((tiles + kTiles - 1) / kTiles);
  const int64_t most = std::max(context.device.num_processors, kMaxSlices);
  return items * most * most < int64_t(1) << 32;
}

}  // namespace

bool can_sweep_experts(const Context& context, int64_t rows, int64_t pairs,
                       const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts) {
  constexpr int kFewestRows = 9;  // for fewer, a start that all blocks wait for costs more
  return rows >= kFewestRows && pairs <= kNumCounters && gate_up.format == Format::kNvfp4 &&
         down.format == Format::kNvfp4 &&
         plan_of(context, gate_up, down, pairs, num_experts).warps >= kFewestWarps &&
         can_divide(context, gate_up, down, pairs, num_experts);
}

size_t experts_sweep_bytes(int64_t pairs, const PackedMatrices& down) {
  return size_t(pairs * down.rows) * sizeof(float);
}

SlotSums experts_sweep(const Context& context, const Activations& x, const Routing& routing,
                       const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                       const Activations& inner, const Results& out, void* memory) {
  const RoutedRows routed{Matrix<int32_t>(routing.experts), Matrix<float>(routing.weights),
                          num_experts};
  const int64_t pairs = routing.experts.rows * routing.experts.cols;
  auto* products = static_cast<float*>(memory);
  const BlockPlan plan = plan_of(context, gate_up, down, pairs, num_experts);
  const auto items_of = [](const PackedMatrices& w) {
    return Divisor((w.tiles + kTiles - 1) / kTiles);
  };
  const Products::Divisors divisors{.blocks = Divisor(context.device.num_processors),
                                    .warps = Divisor(plan.warps),
                                    .items = {items_of(gate_up), items_of(down)},
                                    .slices = {Divisor(gate_up.slices), Divisor(down.slices)}};
  allow_shared(experts_sweep_kernel, plan.shared_bytes);
  launch(context,
         {.blocks = {unsigned(context.device.num_processors)},
          .threads = (plan.warps + 1) * kWarp,
          .shared_bytes = plan.shared_bytes},
         experts_sweep_kernel, gate_up, x, down, inner, routed, products, context.counters,
         plan.buffers, divisors, SharedExperts(gate_up, num_experts, routing.num_shared),
         SharedExperts(down, num_experts, routing.num_shared));
  return {.weights = routing.weights,
          .products = products,
          .outputs = down.rows,
          .out = out,
          .counters = context.counters,
          .num_counters = int(pairs)};
}

}  // namespace nibble::cuda
