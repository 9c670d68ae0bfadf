// experts for several rows (experts.h's formula; stream.cuh's tiling, from some rows on
// sweep.cuh's): the chosen experts' matrices stream once for each 8 of their rows.
//
//   gate_up  an item = a chunk of an expert's rows x a tile
//   down     a block = a tile of outputs, for all chunks; then the sum over a row's slots
//
// For NVFP4 and more rows experts_sweep.cu is faster, where a block has the memory.
//
// Hidden 2048, width 1536, 4 of 48 experts, on an H100 80GB HBM3: 8 rows 56.6 us, 74 % of 3.1 TB/s.
// Nearly half of a warp's time is waiting for its inputs, which come from L2 for every tile.
#include <algorithm>
#include <climits>

#include "backend/cuda/experts_chunks.cuh"
#include "backend/cuda/experts_products.h"
#include "backend/cuda/sweep.cuh"

namespace nibble::cuda {
namespace {

struct GateUpWork : ChunkItems {
  const Activations& x;
  bf16* inner;
  int64_t inner_stride;

  __device__ int input_row(Cursor at, int n) const { return chunks.row(at.chunk, n); }
  __device__ int items_known() const { return INT_MAX / kMaxWarps; }
  __device__ void learn_items() const {}
  __device__ Activations begin() const { return x; }
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    inner[pair(at, n) * inner_stride + tile * 8 + i] = from_float<bf16>(silu(low) * high);
  }
};

// All of a block's items are of one tile.
struct DownWork {
  using Cursor = int;  // the chunk

  Chunks chunks;
  float* products;  // [pairs, kTileRows]
  int own_tile;

  __device__ Cursor cursor_of(int item) const { return item; }
  __device__ int matrix(Cursor at) const { return chunks.expert(at); }
  __device__ bool is_read_once(Cursor) const { return true; }  // by one block, chunk by chunk
  __device__ int tile(Cursor) const { return own_tile; }
  __device__ int columns(Cursor at) const { return chunks.columns(at); }
  __device__ int input_row(Cursor at, int n) const { return chunks.pair(at, n); }
  __device__ void begin() const { wait_for_predecessor(); }
  __device__ void finish(Cursor at, int, int i, int n, float low, float high) const {
    float* to = products + input_row(at, n) * kTileRows + i;
    to[0] = low;
    to[8] = high;
  }
};

// How a kernel's warps share the work: a block's warps a tile (stream.cuh), or each its own
// (sweep.cuh).
template <typename Unit>
struct Stream {
  using Shape = StreamShape<Unit, kRowGroup>;
  static constexpr int kBlocks = Shape::kBlocks, kMaxThreads = kMaxWarps * kWarp;
  static constexpr bool kIsContiguous = true;  // the items of a block

  static __host__ __device__ size_t shared_bytes(int warps) { return Shape::shared_bytes(warps); }
  static int warps(const Context&, const PackedMatrices& w, size_t) {
    return w.slices * tiles_together(w);
  }
  static int together(const PackedMatrices& w) { return tiles_together(w); }

  template <typename Work>
  static __device__ void run(const PackedMatrices& w, const Activations&, const Work& work,
                             int items, int together, uint8_t* shared) {
    stream_products<Unit, kRowGroup>(w, work, work.cursor_of(0), items, together, shared);
  }
};

// `blocks` a multiprocessor, of `most_warps` each.
template <typename Unit, typename Shares, int blocks, int most_warps>
struct OwnSweep {
  using Way = Sweep<Unit, OwnInputs<Unit>, Shares, 1>;
  static constexpr int kBlocks = blocks, kMaxThreads = most_warps * kWarp;
  static constexpr bool kIsContiguous = false;

  static __host__ __device__ size_t shared_bytes(int warps) {
    return Way::Shape::shared_bytes(warps);
  }
  // As many as shared memory holds beside `other` bytes.
  static int warps(const Context& context, const PackedMatrices&, size_t other) {
    const size_t left = context.device.shared_bytes - other - shared_bytes(0);
    return std::min(most_warps, int(left / (shared_bytes(1) - shared_bytes(0))));
  }
  static int together(const PackedMatrices&) { return 1; }

  template <typename Work>
  static __device__ void run(const PackedMatrices& w, const Activations& x, const Work& work,
                             int items, int, uint8_t* shared) {
    Way sweep(int(blockDim.x) / kWarp, shared);
    OwnInputs<Unit> inputs(x);
    __syncthreads();
    sweep.run(OnePart<Work>{work, w, items}, inputs);
  }
};

template <typename Way>
__global__ void __launch_bounds__(Way::kMaxThreads, Way::kBlocks)
    experts_gate_up_stream_kernel(PackedMatrices w, Activations x, RoutedRows routed, bf16* inner,
                                  int64_t inner_stride, int together) {
  extern __shared__ __align__(16) uint8_t shared[];
  int* lists = reinterpret_cast<int*>(shared + Way::shared_bytes(int(blockDim.x) / kWarp));
  wait_for_predecessor();
  // Only now: what the successor reads of the routing before it waits is complete.
  let_successor_begin();
  const Chunks chunks = make_chunks(routed, lists);
  const int items_a_chunk = int(unsigned(w.tiles + together - 1) / unsigned(together));
  const int items = chunks.count() * items_a_chunk, block = int(blockIdx.x);
  const int blocks = int(gridDim.x);
  Range own{block, items > block ? (items - block + blocks - 1) / blocks : 0};
  if constexpr (Way::kIsContiguous) own = range_of_block(items);
  const GateUpWork work{
      {chunks, own.first, Way::kIsContiguous ? 1 : blocks, together, items_a_chunk},
      x,
      inner,
      inner_stride};
  Way::run(w, x, work, own.count, together, shared);
}

// A block a tile, for all chunks; then the sum over a row's slots.
template <typename Way>
__global__ void __launch_bounds__(Way::kMaxThreads, Way::kBlocks)
    experts_down_stream_kernel(PackedMatrices w, Activations inner, RoutedRows routed,
                               Results out) {
  static_assert(!Way::kIsContiguous);  // the chunks have rows of their own
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  const int num_rows = int(routed.experts.rows), slots = routed.slots(), pairs = routed.pairs();
  int* lists = reinterpret_cast<int*>(shared + Way::shared_bytes(int(blockDim.x) / kWarp));
  // Before the wait: the gate_up kernel let this one begin after its own predecessors had ended.
  const Chunks chunks = make_chunks(routed, lists);
  auto* products = reinterpret_cast<float*>(lists + chunk_ints(pairs, routed.num_experts));
  const int tile = int(blockIdx.x);
  const DownWork work{chunks, products, tile};
  Way::run(w, inner, work, chunks.count(), 1, shared);
  __syncthreads();
  for (int e = int(threadIdx.x); e < num_rows * kTileRows; e += int(blockDim.x)) {
    const int t = e / kTileRows, place = e % kTileRows, row = row_of(w, tile, place);
    if (row < 0) continue;
    store(out, t, row,
          sum_of_slots(stored_weights(routed.weights.row(t)),
                       products + t * slots * kTileRows + place, kTileRows, slots));
  }
}

// Calls run(Way()) with gate_up's way for a number of rows. With few, a tile a warp leaves most
// warps without one.
constexpr int kMostStreamed = 4;
template <typename Run>
void with_way(Format format, int rows, Run&& run) {
  with_unit(format, [&]<typename Unit>(Unit) {
    constexpr int kBlocks = Unit::kProducts == 1 ? 3 : 2;
    constexpr int kWarps = Unit::kBytes < 2048 ? kMaxSweepWarps : 16;
    if (rows <= kMostStreamed) return run(Stream<Unit>());
    run(OwnSweep<Unit, InTurn, kBlocks, kWarps / kBlocks>());
  });
}

// The same of down: all the warps of a multiprocessor share a tile.
template <typename Run>
void with_down_way(Format format, int rows, Run&& run) {
  with_unit(format, [&]<typename Unit>(Unit) {
    constexpr int kWarps = Unit::kBytes < 2048 ? kMaxSweepWarps : 16;
    if (rows <= kMostStreamed) return run(OwnSweep<Unit, InTurn, 1, kWarps>());
    run(OwnSweep<Unit, Balanced, 1, kWarps>());
  });
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
  with_way(gate_up.format, x.rows, [&]<typename Way>(Way) {
    const auto kernel = experts_gate_up_stream_kernel<Way>;
    const size_t other_bytes = list_bytes(pairs, num_experts);
    const int warps = Way::warps(context, gate_up, other_bytes);
    const size_t shared_bytes = Way::shared_bytes(warps) + other_bytes;
    allow_shared(kernel, shared_bytes);
    launch(context,
           {.blocks = {unsigned(context.device.num_processors * Way::kBlocks)},
            .threads = warps * kWarp,
            .shared_bytes = shared_bytes},
           kernel, gate_up, x, routed, static_cast<bf16*>(const_cast<void*>(inner.data)),
           inner.stride, Way::together(gate_up));
  });
  with_down_way(down.format, x.rows, [&]<typename Way>(Way) {
    const auto kernel = experts_down_stream_kernel<Way>;
    const size_t other_bytes =
        list_bytes(pairs, num_experts) + size_t(pairs * kTileRows) * sizeof(float);
    const int warps = Way::warps(context, down, other_bytes);
    const size_t shared_bytes = Way::shared_bytes(warps) + other_bytes;
    allow_shared(kernel, shared_bytes);
    launch(
        context,
        {.blocks = {unsigned(down.tiles)}, .threads = warps * kWarp, .shared_bytes = shared_bytes},
        kernel, down, inner, routed, out);
  });
}

}  // namespace nibble::cuda
