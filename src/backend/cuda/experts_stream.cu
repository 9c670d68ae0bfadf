// experts for several rows (experts.h's formula; sweep.cuh's tiling): the chosen experts' matrices
// stream once for each 8 of their rows.
//
//   gate_up  an item = a chunk of an expert's rows x a tile, for a warp; the rows of x lie in
//            shared memory where there is room
//   down     a block = a tile of outputs, for all chunks, of which its warps take equal lengths;
//            then the sum over a row's slots
//
// A chunk is up to 8 rows of an expert. While gate_up waits for the routing, it has the experts
// that all rows take brought to L2.
//
// For NVFP4 and more rows experts_sweep.cu is faster, where a block has the memory.
//
// Hidden 2048, width 1536, 4 of 48 experts, on an H100 80GB HBM3 (backend_bench
// --benchmark_filter=wide/experts): 2, 4 and 8 rows 24.9, 36.4 and 52.7 us, 52, 68 and 78 % of 3.1
// TB/s. Each expert more costs its bytes; the rest is what neither product can overlap: making the
// chunks, the way of the first weights, and blocks that end later than others.
#include <algorithm>

#include "backend/cuda/experts_chunks.cuh"
#include "backend/cuda/experts_products.h"
#include "backend/cuda/sweep.cuh"

namespace nibble::cuda {
namespace {

// A block's items: of the line of all chunks' tiles every gridDim.x-th.
struct GateUpWork {
  struct Cursor {
    int chunk, tile;
  };

  Chunks chunks;
  int tiles;  // a chunk
  bf16* inner;
  int64_t inner_stride;

  __device__ int num_items() const {
    const int all = chunks.count() * tiles - int(blockIdx.x), blocks = int(gridDim.x);
    return all > 0 ? (all + blocks - 1) / blocks : 0;
  }
  __device__ Cursor cursor_of(int item) const {
    const unsigned i = blockIdx.x + unsigned(item) * gridDim.x, chunk = i / unsigned(tiles);
    return {int(chunk), int(i - chunk * unsigned(tiles))};
  }
  __device__ int matrix(Cursor at) const { return chunks.expert(at.chunk); }
  __device__ bool is_read_once(Cursor at) const { return chunks.is_alone(at.chunk); }
  __device__ int tile(Cursor at) const { return at.tile; }
  __device__ int columns(Cursor at) const { return chunks.columns(at.chunk); }
  __device__ int input_row(Cursor at, int n) const { return chunks.row(at.chunk, n); }
  __device__ void begin() const {}
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    const int pair = chunks.pair(at.chunk, n);
    inner[pair * inner_stride + tile * 8 + i] = from_float<bf16>(silu(low) * high);
  }
};

// All of a block's items are of one tile.
struct DownWork {
  using Cursor = int;  // the chunk

  Chunks chunks;
  float* products;  // [pairs, kTileRows]

  __device__ Cursor cursor_of(int item) const { return item; }
  __device__ int matrix(Cursor at) const { return chunks.expert(at); }
  __device__ bool is_read_once(Cursor) const { return true; }  // by one block, chunk by chunk
  __device__ int tile(Cursor) const { return int(blockIdx.x); }
  __device__ int columns(Cursor at) const { return chunks.columns(at); }
  __device__ int input_row(Cursor at, int n) const { return chunks.pair(at, n); }
  __device__ void begin() const { wait_for_predecessor(); }
  __device__ void finish(Cursor at, int, int i, int n, float low, float high) const {
    float* to = products + input_row(at, n) * kTileRows + i;
    to[0] = low;
    to[8] = high;
  }
};

// With fewer, rows stay where they are: a card of little shared memory needs it for the rings.
constexpr int kFewestStagedWarps = 16;
// 80 registers each, or 128.
template <typename Unit>
constexpr int kMostWarps = Unit::kBytes < 2048 ? kMaxSweepWarps : 16;

template <typename Unit, typename Shares>
using ExpertsWay = Sweep<Unit, OwnInputs<Unit>, Shares, 1>;

// x with its rows in shared memory, 16 bytes more than their columns, which are zeros: the lanes of
// a load meet all banks. By all threads, which meet before the first use.
__device__ __forceinline__ Activations stage_rows(const Activations& x, uint8_t* shared) {
  const int pieces = (x.cols + 7) / 8 + 1;
  auto* to = reinterpret_cast<uint4*>(shared);
#pragma unroll 2
  for (int i = int(threadIdx.x); i < x.rows * pieces; i += int(blockDim.x)) {
    const int row = int(unsigned(i) / unsigned(pieces)), column = (i - row * pieces) * 8;
    const bf16* from = static_cast<const bf16*>(x.data) + row * x.stride + column;
    to[i] = column < x.cols ? *reinterpret_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
  }
  return {shared, pieces * 8, x.rows, x.cols};
}
size_t staged_bytes(const Activations& x) {
  return size_t(x.rows) * size_t((x.cols + 7) / 8 + 1) * sizeof(uint4);
}

// staged_bytes: 0 if rows stay where they are.
template <typename Unit>
__global__ void __launch_bounds__(kMostWarps<Unit>* kWarp, 1)
    experts_gate_up_stream_kernel(PackedMatrices w, Activations x, RoutedRows routed, bf16* inner,
                                  int64_t inner_stride, int staged_bytes, SharedExperts gates,
                                  SharedExperts downs) {
  extern __shared__ __align__(16) uint8_t shared[];
  if (threadIdx.x == 0) gates.bring_to_cache(), downs.bring_to_cache();
  using Way = ExpertsWay<Unit, InTurn>;
  const int warps = int(blockDim.x) / kWarp;
  uint8_t* after = shared + Way::Shape::shared_bytes(warps);
  Way sweep(warps, shared);
  wait_for_predecessor();
  // Only now: what the successor reads of the routing before it waits is complete.
  let_successor_begin();
  const Activations rows = staged_bytes > 0 ? stage_rows(x, after) : x;
  const Chunks chunks = make_chunks(routed, reinterpret_cast<int*>(after + staged_bytes));
  const GateUpWork work{chunks, w.tiles, inner, inner_stride};
  OwnInputs<Unit> inputs(rows);
  sweep.run(OnePart<GateUpWork>{work, w, work.num_items()}, inputs);
}

// A block a tile, for all chunks; then the sum over a row's slots.
template <typename Unit>
__global__ void __launch_bounds__(kMostWarps<Unit>* kWarp, 1)
    experts_down_stream_kernel(const __grid_constant__ PackedMatrices w,
                               const __grid_constant__ Activations inner, RoutedRows routed,
                               Results out) {
  extern __shared__ __align__(16) uint8_t shared[];
  using Way = ExpertsWay<Unit, Balanced>;
  let_successor_begin();
  const int warps = int(blockDim.x) / kWarp;
  // Before the wait: the gate_up kernel let this one begin after its own predecessors had ended.
  auto* lists = reinterpret_cast<int*>(shared + Way::Shape::shared_bytes(warps));
  const Chunks chunks = make_chunks(routed, lists);
  Way sweep(warps, shared);
  __syncthreads();
  auto* products = reinterpret_cast<float*>(lists + chunk_ints(routed.pairs(), routed.num_experts));
  const DownWork work{chunks, products};
  OwnInputs<Unit> inputs(inner);
  sweep.run(OnePart<DownWork>{work, w, chunks.count()}, inputs);
  __syncthreads();
  const int num_rows = int(routed.experts.rows), slots = routed.slots(), tile = int(blockIdx.x);
  for (int e = int(threadIdx.x); e < num_rows * kTileRows; e += int(blockDim.x)) {
    const int t = e / kTileRows, place = e % kTileRows, row = row_of(w, tile, place);
    if (row < 0) continue;
    store(out, t, row,
          sum_of_slots(stored_weights(routed.weights.row(t)),
                       products + t * slots * kTileRows + place, kTileRows, slots));
  }
}

// The most warps that shared memory holds beside `other` bytes.
template <typename Unit>
int warps_beside(const Context& context, size_t other) {
  using Shape = SweepShape<Unit, 1>;
  const size_t all = context.device.shared_bytes, fixed = Shape::shared_bytes(0) + other;
  const size_t each = Shape::shared_bytes(1) - Shape::shared_bytes(0);
  return fixed > all ? 0 : std::min(kMostWarps<Unit>, int((all - fixed) / each));
}

size_t list_bytes(int64_t pairs, int num_experts) {
  return size_t(chunk_ints(int(pairs), num_experts)) * sizeof(int);
}

}  // namespace

void experts_stream(const Context& context, const Activations& x, const Routing& routing,
                    const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                    const Activations& inner, const Results& out) {
  const RoutedRows routed{Matrix<int32_t>(routing.experts), Matrix<float>(routing.weights),
                          num_experts};
  const int64_t pairs = routing.experts.rows * routing.experts.cols;
  const size_t lists = list_bytes(pairs, num_experts);
  with_unit(gate_up.format, [&]<typename Unit>(Unit) {
    const auto kernel = experts_gate_up_stream_kernel<Unit>;
    const auto warps_with = [&](size_t staged) {
      return warps_beside<Unit>(context, lists + staged);
    };
    const bool is_staged =
        warps_with(staged_bytes(x)) >= std::min(kFewestStagedWarps, warps_with(0));
    const size_t staged = is_staged ? staged_bytes(x) : 0;
    const int warps = warps_with(staged);
    const size_t shared_bytes = SweepShape<Unit, 1>::shared_bytes(warps) + staged + lists;
    allow_shared(kernel, shared_bytes);
    launch(context,
           {.blocks = {unsigned(context.device.num_processors)},
            .threads = warps * kWarp,
            .shared_bytes = shared_bytes},
           kernel, gate_up, x, routed, static_cast<bf16*>(const_cast<void*>(inner.data)),
           inner.stride, int(staged), SharedExperts(gate_up, num_experts, routing.num_shared),
           SharedExperts(down, num_experts, routing.num_shared));
  });
  with_unit(down.format, [&]<typename Unit>(Unit) {
    const auto kernel = experts_down_stream_kernel<Unit>;
    const size_t other = lists + size_t(pairs * kTileRows) * sizeof(float);
    const int warps = warps_beside<Unit>(context, other);
    const size_t shared_bytes = SweepShape<Unit, 1>::shared_bytes(warps) + other;
    allow_shared(kernel, shared_bytes);
    launch(
        context,
        {.blocks = {unsigned(down.tiles)}, .threads = warps * kWarp, .shared_bytes = shared_bytes},
        kernel, down, inner, routed, out);
  });
}

}  // namespace nibble::cuda
