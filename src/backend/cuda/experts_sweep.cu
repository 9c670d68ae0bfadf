// experts for several rows (experts.h's formula; sweep.cuh's tiling), both products in one kernel:
// the chosen experts' matrices stream once for each 8 of their rows, without a pause between
// gate_up and down.
//
// A chunk is up to 8 rows of an expert. For each of the products a block takes its run of the line
// of all chunks' tiles. Of down, its part of the matrix is on its way while the rows of its chunks
// are still being made by other blocks. The sums over a row's slots are left to the next kernel
// (rows.h).
//
// All blocks must be there at once: one a multiprocessor, and none of a later kernel before all of
// them have begun.
//
// Hidden 2048, width 1536, 4 of 48 experts, on an H100 80GB HBM3 (backend_bench
// --benchmark_filter=wide/experts): 64 rows 109 us with the sums as a kernel, 75 % of 3.1 TB/s. A
// start that no other kernel can overlap and the change between the products are what is missing;
// more warps, more stages, bulk copies, 16 rows by a decoded tile, or fetching down before gate_up
// has ended do not help: the copies alone take nearly as long.
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

struct GateUpWork : ChunkItems {
  bf16* inner;
  int64_t inner_stride;

  __device__ int input_row(Cursor at, int n) const { return chunks.row(at.chunk, n); }
  __device__ void begin() const {}
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    inner[pair(at, n) * inner_stride + tile * 8 + i] = from_float<bf16>(silu(low) * high);
  }
};

struct DownWork : ChunkItems {
  const PackedMatrices& w;
  float* products;  // [pairs, w.rows]

  __device__ int input_row(Cursor at, int n) const { return pair(at, n); }
  __device__ void begin() const {}
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    float* to = products + int64_t(pair(at, n)) * w.rows;
    const int first = row_of(w, tile, i), second = row_of(w, tile, i + 8);
    if (first >= 0) to[first] = low;
    if (second >= 0) to[second] = high;
  }
};

// What the warp that brings inputs does beside: it tells the other blocks which inner rows this one
// has made.
class Announcer {
 public:
  __device__ Announcer(const Inputs& inputs, int* made) : inputs_(inputs), made_(made) {}

  // The buffer holds inputs of so many items of a chunk.
  __device__ void expect(int buffer, int chunk, int items) {
#pragma unroll
    for (int i = 0; i < Inputs::kBuffers; ++i) {
      if (i == buffer) chunk_[i] = chunk, items_[i] = items;
    }
  }
  // When all warps have left the buffer, what they made of it has been written.
  __device__ void announce(int buffer) {
#pragma unroll
    for (int i = 0; i < Inputs::kBuffers; ++i) {
      if (i != buffer || chunk_[i] < 0) continue;
      inputs_.wait_until_left(i);
      if (threadIdx.x % kWarp == 0) {
        __threadfence();
        atomicAdd(made_ + chunk_[i], items_[i]);
      }
      chunk_[i] = -1;
    }
  }

 private:
  static_assert(Inputs::kBuffers == 2);
  const Inputs& inputs_;
  int* made_;
  int chunk_[2] = {-1, -1}, items_[2] = {};
};

__device__ void bring_inputs(const PackedMatrices& gate_up, const GateUpWork& gate_up_work,
                             int gate_up_items, const Activations& x, const PackedMatrices& down,
                             const DownWork& down_work, int down_items, const Activations& inner,
                             int* made, Inputs& inputs) {
  Announcer announcer(inputs, made);
  for (int i = 0; i < gate_up_items;) {
    const int chunk = gate_up_work.segment_of(i), buffer = inputs.next_buffer();
    const int end = min(gate_up_items, gate_up_work.segment_begin(chunk + 1));
    announcer.announce(buffer);
    inputs.bring(x, gate_up.units, gate_up_work, gate_up_work.cursor_of(i));
    announcer.expect(buffer, chunk, end - i);
    i = end;
  }
  for (int n = 0; n < Inputs::kBuffers; ++n) {  // the older one first
    announcer.announce((inputs.next_buffer() + n) % Inputs::kBuffers);
  }
  for (int i = 0; i < down_items;) {
    const int chunk = down_work.segment_of(i);
    if (threadIdx.x % kWarp == 0) {
      while (load_acquire(made + chunk) < gate_up_work.items_a_chunk) __nanosleep(20);
    }
    __syncwarp();
    inputs.bring(inner, down.units, down_work, down_work.cursor_of(i));
    i = min(down_items, down_work.segment_begin(chunk + 1));
  }
}

using ExpertsSweep = Sweep<Unit, Inputs, Balanced, kTiles>;

__global__ void __launch_bounds__((kMostWarps + 1) * kWarp, 1)
    experts_sweep_kernel(PackedMatrices gate_up, Activations x, PackedMatrices down,
                         Activations inner, RoutedRows routed, float* products, int* made,
                         int warps) {
  extern __shared__ __align__(16) uint8_t shared[];
  uint8_t* after = shared + ExpertsSweep::Shape::shared_bytes(warps);
  const int most_units = max(gate_up.units, down.units);
  ExpertsSweep sweep(warps, shared);
  Inputs inputs(most_units, warps, after);
  auto* lists = reinterpret_cast<int*>(after + Inputs::shared_bytes(most_units));
  wait_for_predecessor();
  let_successor_begin();
  const Chunks chunks = make_chunks(routed, lists);  // where all threads meet
  const int gate_up_items = (gate_up.tiles + kTiles - 1) / kTiles;
  const int down_items = (down.tiles + kTiles - 1) / kTiles;
  const Range own = range_of_block(int64_t(chunks.count()) * gate_up_items);
  const Range own_down = range_of_block(int64_t(chunks.count()) * down_items);
  const GateUpWork gate_up_work{{chunks, own.first, 1, kTiles, gate_up_items},
                                static_cast<bf16*>(const_cast<void*>(inner.data)),
                                inner.stride};
  const DownWork down_work{{chunks, own_down.first, 1, kTiles, down_items}, down, products};
  if (int(threadIdx.x) / kWarp == warps) {
    return bring_inputs(gate_up, gate_up_work, own.count, x, down, down_work, own_down.count, inner,
                        made, inputs);
  }
  sweep.run(gate_up, gate_up_work, own.count, inputs);
  sweep.run(down, down_work, own_down.count, inputs);
}

// A block's shared memory.
size_t shared_bytes(int warps, const PackedMatrices& gate_up, const PackedMatrices& down,
                    int64_t pairs, int num_experts) {
  return ExpertsSweep::Shape::shared_bytes(warps) +
         Inputs::shared_bytes(std::max(gate_up.units, down.units)) +
         size_t(chunk_ints(int(pairs), num_experts)) * sizeof(int);
}

// Of a block, as many as shared memory holds.
int warps_that_fit(const Context& context, const PackedMatrices& gate_up,
                   const PackedMatrices& down, int64_t pairs, int num_experts) {
  const size_t other = shared_bytes(0, gate_up, down, pairs, num_experts);
  const size_t each = shared_bytes(1, gate_up, down, pairs, num_experts) - other;
  if (other > context.device.shared_bytes) return 0;
  return std::min(kMostWarps, int((context.device.shared_bytes - other) / each));
}

}  // namespace

bool can_sweep_experts(const Context& context, int64_t rows, int64_t pairs,
                       const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts) {
  constexpr int kFewestRows = 9;  // for fewer, a start that all blocks wait for costs more
  return rows >= kFewestRows && pairs <= kNumCounters && gate_up.format == Format::kNvfp4 &&
         down.format == Format::kNvfp4 &&
         warps_that_fit(context, gate_up, down, pairs, num_experts) >= kFewestWarps;
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
  const int warps = warps_that_fit(context, gate_up, down, pairs, num_experts);
  const size_t bytes = shared_bytes(warps, gate_up, down, pairs, num_experts);
  allow_shared(experts_sweep_kernel, bytes);
  launch(context,
         {.blocks = {unsigned(context.device.num_processors)},
          .threads = (warps + 1) * kWarp,
          .shared_bytes = bytes},
         experts_sweep_kernel, gate_up, x, down, inner, routed, products, context.counters, warps);
  return {.weights = routing.weights,
          .products = products,
          .outputs = down.rows,
          .out = out,
          .counters = context.counters,
          .num_counters = int(pairs)};
}

}  // namespace nibble::cuda
