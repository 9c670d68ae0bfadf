// experts for few rows (experts.h's formula; stream.cuh's tiling, from some rows on sweep.cuh's):
// the chosen experts' matrices stream once for each 8 of their rows.
//
//   gate_up  an item = a chunk of an expert's rows x a tile; a block takes every so many-th item
//   down     a block = a tile of outputs, for all chunks; then the sum over a row's slots
//
// Each block groups the pairs by expert for itself: a hand-over costs more than that.
//
// Share of 3.0 TB/s: the chosen experts' bytes over the time of both kernels, NVFP4, hidden 2048,
// width 1536, 4 of 48 experts, on an H100 80GB HBM3: 1 row 40 % (17.6 us), 8 rows 70 %. In the
// whole model, with a shared expert: 64 rows 58 % (148 us). Bound by decoding and, with one row, by
// two hand-overs.
#include <climits>

#include "backend/cuda/experts_products.h"
#include "backend/cuda/experts_work.cuh"
#include "backend/cuda/stream.cuh"
#include "backend/cuda/sweep.cuh"

namespace nibble::cuda {
namespace {

constexpr int kChunkRows = 8;

__host__ __device__ int max_chunks(int pairs, int num_experts) {
  return min(pairs, num_experts + pairs / kChunkRows);
}

// Which experts rows take; of the columns the last num_shared are the same in every row.
struct RoutedRows {
  Matrix<int32_t> experts;
  Matrix<float> weights;
  int num_experts = 0, num_shared = 0;

  __device__ int slots() const { return int(experts.cols); }
  __device__ int pairs() const { return int(experts.rows) * slots(); }
};

// Pairs of one expert, pairs rising; chunks by expert, rising. In shared memory.
struct Chunks {
  int* ints = nullptr;  // how many; then experts, numbers of pairs, pairs
  int max = 0;

  __device__ int& count() const { return ints[0]; }
  __device__ int& expert(int chunk) const { return ints[1 + chunk]; }
  __device__ int& columns(int chunk) const { return ints[1 + max + chunk]; }
  // row * 2^16 + pair
  __device__ int& row_and_pair(int chunk, int n) const {
    return ints[1 + 2 * max + chunk * kChunkRows + n];
  }
  __device__ int pair(int chunk, int n) const { return row_and_pair(chunk, n) & 0xffff; }
  __device__ int row(int chunk, int n) const { return row_and_pair(chunk, n) >> 16; }
  __device__ int* end() const { return ints + 1 + max * (2 + kChunkRows); }
};

// Of the chunks and, behind them, of what making them takes.
__host__ __device__ int chunk_ints(int pairs, int num_experts) {
  return (1 + max_chunks(pairs, num_experts) * (2 + kChunkRows) + 2 * pairs + 2 * num_experts + 3) /
         4 * 4;
}

// One row: of its slots, behind the chunks.
__device__ __forceinline__ float* weights_of_row(const Chunks& chunks) {
  return reinterpret_cast<float*>(chunks.end());
}

// One row: a chunk a slot, those of shared experts, the last slots, first.
__device__ Chunks make_chunks_of_row(const RoutedRows& routed, int* shared) {
  const int slots = routed.slots(), slot = int(threadIdx.x);
  const Chunks chunks{shared, slots};
  if (slot < slots) {
    const int chunk = (slot + routed.num_shared) % slots;
    chunks.expert(chunk) = __ldcg(routed.experts.data + slot);
    chunks.columns(chunk) = 1;
    chunks.row_and_pair(chunk, 0) = slot;
    chunks.count() = slots;
    weights_of_row(chunks)[slot] = __ldcg(routed.weights.data + slot);
  }
  __syncthreads();
  return chunks;
}

__device__ Chunks make_chunks(const RoutedRows& routed, int* shared) {
  const int slots = routed.slots(), pairs = routed.pairs(), num_experts = routed.num_experts;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int warps = int(blockDim.x) / kWarp;
  const Chunks chunks{shared, max_chunks(pairs, num_experts)};
  int* ids = chunks.end();
  int* counts = ids + pairs;          // pairs of an expert
  int* bases = counts + num_experts;  // its first chunk
  for (int i = int(threadIdx.x); i < pairs; i += int(blockDim.x)) {
    ids[i] = __ldcg(routed.experts.row(i / slots) + i % slots);
  }
  __syncthreads();
  const auto votes_of = [&](int expert, int first) {
    return __ballot_sync(0xffffffffu, first + lane < pairs && ids[first + lane] == expert);
  };
  for (int e = warp; e < num_experts; e += warps) {
    int count = 0;
    for (int first = 0; first < pairs; first += kWarp) count += __popc(votes_of(e, first));
    if (lane == 0) counts[e] = count;
  }
  __syncthreads();
  if (warp == 0) {
    int total = 0;
    for (int first = 0; first < num_experts; first += kWarp) {
      const int e = first + lane;
      const int own = e < num_experts ? (counts[e] + kChunkRows - 1) / kChunkRows : 0;
      int sum = own;  // of this lane and those before it
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int lower = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= offset) sum += lower;
      }
      if (e < num_experts) bases[e] = total + sum - own;
      total += __shfl_sync(0xffffffffu, sum, kWarp - 1);
    }
    if (lane == 0) chunks.count() = total;
  }
  __syncthreads();
  for (int e = warp; e < num_experts; e += warps) {
    const int count = counts[e], base = bases[e];
    if (count == 0) continue;
    for (int c = lane; c * kChunkRows < count; c += kWarp) {
      chunks.expert(base + c) = e;
      chunks.columns(base + c) = min(kChunkRows, count - c * kChunkRows);
    }
    int before = 0;
    for (int first = 0; first < pairs; first += kWarp) {
      const unsigned votes = votes_of(e, first);
      const int place = before + __popc(votes & ((1u << lane) - 1)), pair = first + lane;
      if (votes >> lane & 1) {
        chunks.row_and_pair(base + place / kChunkRows, place % kChunkRows) =
            pair / slots << 16 | pair;
      }
      before += __popc(votes);
    }
  }
  __syncthreads();
  return chunks;
}

template <typename Way>
__device__ Chunks make_chunks_for(const RoutedRows& routed, int* shared) {
  if constexpr (Way::kOneRow) return make_chunks_of_row(routed, shared);
  return make_chunks(routed, shared);
}

template <typename Way>
struct GateUpWork {
  struct Cursor {
    int chunk, tile;
  };

  const PackedMatrices& w;
  const RoutedRows& routed;
  Chunks chunks;
  const Activations& x;
  bf16* inner;
  int64_t inner_stride;
  int tiles_an_item;
  int tiles_a_chunk;  // as many items have, some of them beyond the last

  __device__ Cursor next(Cursor at, int items) const {
    const unsigned tile = unsigned(at.tile + items * int(gridDim.x) * tiles_an_item);
    const unsigned chunks_on = tile / unsigned(tiles_a_chunk);
    return {at.chunk + int(chunks_on), int(tile - chunks_on * unsigned(tiles_a_chunk))};
  }
  __device__ int matrix(Cursor at) const {
    if (Way::kOneRow && at.chunk < routed.num_shared) {
      return routed.num_experts - routed.num_shared + at.chunk;
    }
    return chunks.expert(at.chunk);
  }
  __device__ int tile(Cursor at) const { return at.tile; }
  __device__ int columns(Cursor at) const { return chunks.columns(at.chunk); }
  __device__ int pair(Cursor at, int n) const { return chunks.pair(at.chunk, n); }
  __device__ int input_row(Cursor at, int n) const { return chunks.row(at.chunk, n); }
  // With one row, the first item where that is a shared expert's.
  __device__ int items_known() const {
    if (!Way::kOneRow) return INT_MAX / kMaxWarps;
    return int(blockIdx.x) * tiles_an_item < tiles_a_chunk * routed.num_shared ? 1 : 0;
  }
  __device__ void learn_items() const {
    if constexpr (Way::kOneRow) {
      wait_for_predecessor();
      // Only now: what the successor reads of the routing before it waits is complete.
      let_successor_begin();
      make_chunks_of_row(routed, chunks.ints);
    }
  }
  __device__ Activations begin() const { return x; }
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    inner[pair(at, n) * inner_stride + tile * 8 + i] = from_float<bf16>(silu(low) * high);
  }
};

// How a kernel's warps share the work: a block's warps a tile (stream.cuh), or each its own
// (sweep.cuh).
template <typename Unit, int kColumns>
struct Stream {
  using Shape = StreamShape<Unit, kColumns>;
  static constexpr int kBlocks = Shape::kBlocks, kMaxThreads = kMaxWarps * kWarp;
  static constexpr bool kOneRow = kColumns == 1;

  static __host__ __device__ size_t shared_bytes(int warps) { return Shape::shared_bytes(warps); }
  static int warps(const PackedMatrices& w) { return w.slices * tiles_together(w); }
  static int together(const PackedMatrices& w) { return tiles_together(w); }

  template <typename Work>
  static __device__ void run(const PackedMatrices& w, const Activations&, const Work& work,
                             typename Work::Cursor first, int items, int together,
                             uint8_t* shared) {
    stream_products<Unit, kColumns>(w, work, first, items, together, shared);
  }
};

template <typename Unit, int kColumns>
struct Sweep {
  static constexpr int kBlocks = 2, kMaxThreads = kSweepWarps * kWarp;
  static constexpr bool kOneRow = false;

  static __host__ __device__ size_t shared_bytes(int) {
    return sweep_shared_bytes<Unit, kColumns>();
  }
  static int warps(const PackedMatrices&) { return kSweepWarps; }
  static int together(const PackedMatrices&) { return 1; }

  template <typename Work>
  static __device__ void run(const PackedMatrices& w, const Activations& x, const Work& work,
                             typename Work::Cursor first, int items, int, uint8_t* shared) {
    sweep_products<Unit, kColumns>(w, x, work, first, items, shared);
  }
};

template <typename Way>
__global__ void __launch_bounds__(Way::kMaxThreads, Way::kBlocks)
    experts_gate_up_stream_kernel(PackedMatrices w, Activations x, RoutedRows routed, bf16* inner,
                                  int64_t inner_stride, int together) {
  extern __shared__ __align__(16) uint8_t shared[];
  int* lists = reinterpret_cast<int*>(shared + Way::shared_bytes(int(blockDim.x) / kWarp));
  Chunks chunks{lists, routed.slots()};
  int count = chunks.max;
  if constexpr (!Way::kOneRow) {
    wait_for_predecessor();
    let_successor_begin();  // only now, as in learn_items()
    chunks = make_chunks(routed, lists);
    count = chunks.count();
  }
  const unsigned items_a_chunk = unsigned(w.tiles + together - 1) / unsigned(together);
  const GateUpWork<Way> work{w,     routed,       chunks,   x,
                             inner, inner_stride, together, int(items_a_chunk) * together};
  const int items = count * int(items_a_chunk), first = int(blockIdx.x), blocks = int(gridDim.x);
  const int own = items > first ? (items - first + blocks - 1) / blocks : 0;
  const typename GateUpWork<Way>::Cursor from{first / int(items_a_chunk),
                                              first % int(items_a_chunk) * together};
  Way::run(w, x, work, from, own, together, shared);
}

struct DownWork {
  using Cursor = int;  // the chunk

  const PackedMatrices& w;
  Chunks chunks;
  const Activations& inner;
  float* products;  // [pair][16 tiles_a_block] in shared memory
  int tiles_a_block, first_tile;

  __device__ Cursor next(Cursor at, int items) const { return at + items; }
  __device__ int matrix(Cursor at) const { return chunks.expert(at); }
  __device__ int tile(Cursor) const { return first_tile; }
  __device__ int columns(Cursor at) const { return chunks.columns(at); }
  __device__ int input_row(Cursor at, int n) const { return chunks.pair(at, n); }
  __device__ int items_known() const { return INT_MAX / kMaxWarps; }
  __device__ void learn_items() const {}
  __device__ Activations begin() const {
    wait_for_predecessor();
    return inner;
  }
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    float* to = products + (input_row(at, n) * tiles_a_block + tile - first_tile) * kTileRows + i;
    to[0] = low;
    to[8] = high;
  }
};

template <typename Way>
__global__ void __launch_bounds__(Way::kMaxThreads, Way::kBlocks)
    experts_down_stream_kernel(PackedMatrices w, Activations inner, RoutedRows routed, Results out,
                               int together) {
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  const int num_rows = int(routed.experts.rows), slots = routed.slots(), pairs = routed.pairs();
  int* lists = reinterpret_cast<int*>(shared + Way::shared_bytes(int(blockDim.x) / kWarp));
  // Before the wait: the gate_up kernel let this one begin after its own predecessors had ended.
  const Chunks chunks = make_chunks_for<Way>(routed, lists);
  auto* products = reinterpret_cast<float*>(lists + chunk_ints(pairs, routed.num_experts));
  const DownWork work{w, chunks, inner, products, together, int(blockIdx.x) * together};
  Way::run(w, inner, work, 0, chunks.count(), together, shared);
  __syncthreads();
  const int outputs = together * kTileRows;
  for (int e = int(threadIdx.x); e < num_rows * outputs; e += int(blockDim.x)) {
    const int t = e / outputs, place = e % outputs, tile = work.first_tile + place / kTileRows;
    const int row = tile < w.tiles ? row_of(w, tile, place % kTileRows) : -1;
    if (row < 0) continue;
    const float* from = products + t * slots * outputs + place;
    if constexpr (Way::kOneRow) {
      const float* weights = weights_of_row(chunks);
      store(out, t, row, sum_of_slots([&](int k) { return weights[k]; }, from, outputs, slots));
    } else {
      store(out, t, row, sum_of_slots(stored_weights(routed.weights.row(t)), from, outputs, slots));
    }
  }
}

// Calls run(Way()) with the way for a number of rows: with few, a tile a warp leaves most warps
// without one.
template <typename Run>
void with_way(Format format, int rows, int max_stream_rows, Run&& run) {
  with_unit(format, [&]<typename Unit>(Unit) {
    if (rows == 1) return run(Stream<Unit, 1>());
    if (rows <= max_stream_rows) return run(Stream<Unit, kChunkRows>());
    run(Sweep<Unit, kChunkRows>());
  });
}

}  // namespace

void experts_stream(const Context& context, const Activations& x, const Routing& routing,
                    const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                    const Activations& inner, const Results& out) {
  const RoutedRows routed{Matrix<int32_t>(routing.experts), Matrix<float>(routing.weights),
                          num_experts, routing.num_shared};
  const int pairs = int(routing.experts.rows * routing.experts.cols);
  const size_t list_bytes = size_t(chunk_ints(pairs, num_experts)) * sizeof(int);
  with_way(gate_up.format, x.rows, 4, [&]<typename Way>(Way) {
    const auto kernel = experts_gate_up_stream_kernel<Way>;
    const int warps = Way::warps(gate_up);
    const size_t shared_bytes = Way::shared_bytes(warps) + list_bytes;
    allow_shared(kernel, shared_bytes);
    const int blocks = context.device.num_processors * Way::kBlocks;
    launch(context,
           {.blocks = {unsigned(blocks)}, .threads = warps * kWarp, .shared_bytes = shared_bytes},
           kernel, gate_up, x, routed, static_cast<bf16*>(const_cast<void*>(inner.data)),
           inner.stride, Way::together(gate_up));
  });
  with_way(down.format, x.rows, 1, [&]<typename Way>(Way) {
    const auto kernel = experts_down_stream_kernel<Way>;
    const int warps = Way::warps(down), together = Way::together(down);
    const size_t shared_bytes = Way::shared_bytes(warps) + list_bytes +
                                size_t(pairs * together * kTileRows) * sizeof(float);
    allow_shared(kernel, shared_bytes);
    launch(context,
           {.blocks = {blocks_for(down.tiles, together)},
            .threads = warps * kWarp,
            .shared_bytes = shared_bytes},
           kernel, down, inner, routed, out, together);
  });
}

}  // namespace nibble::cuda
