// experts for few rows (experts.h's formula; stream.cuh's tiling, from some rows on sweep.cuh's):
// the chosen experts' matrices stream once for each 8 of their rows.
//
//   gate_up  an item = a chunk of an expert's rows x a tile; a block takes a run of items
//   down     a block = a tile of outputs, for all chunks; then the sum over a row's slots
//
// Each block groups the pairs by expert for itself: a hand-over costs more than that.
//
// Share of 3.0 TB/s: the chosen experts' bytes over the time of both kernels, NVFP4, hidden 2048,
// width 1536, 4 of 48 experts, on an H100 80GB HBM3: 1 row 44 % (16 us), 4 rows 56 %, 8 rows 67 %,
// 16 rows 76 %, 32 rows 72 %, 64 rows 67 % (127 us). Bound by decoding and, with one row, by two
// hand-overs.
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

// Pairs of one expert, pairs rising; chunks in the order of their first pair. In shared memory.
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
};

// Of the chunks and, behind them, of what making them takes.
__host__ __device__ int chunk_ints(int pairs, int num_experts) {
  return (1 + max_chunks(pairs, num_experts) * (2 + kChunkRows) + 3 * pairs + 3) / 4 * 4;
}

// One row: a chunk a slot.
__device__ Chunks make_chunks_of_row(const Matrix<const int32_t>& experts, int* shared) {
  const int top_k = int(experts.cols), slot = int(threadIdx.x);
  const Chunks chunks{shared, top_k};
  if (slot < top_k) {
    chunks.expert(slot) = __ldcg(experts.data + slot);
    chunks.columns(slot) = 1;
    chunks.row_and_pair(slot, 0) = slot;
    chunks.count() = top_k;
  }
  __syncthreads();
  return chunks;
}

__device__ Chunks make_chunks(const Matrix<const int32_t>& experts, int num_experts, int* shared) {
  const int top_k = int(experts.cols), pairs = int(experts.rows) * top_k;
  const Chunks chunks{shared, max_chunks(pairs, num_experts)};
  int* ids = shared + 1 + chunks.max * (2 + kChunkRows);
  int* heads = ids + pairs;     // first pair of this pair's chunk
  int* places = heads + pairs;  // in its chunk
  for (int i = int(threadIdx.x); i < pairs; i += int(blockDim.x)) {
    ids[i] = __ldcg(experts.row(i / top_k) + i % top_k);
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < pairs; i += int(blockDim.x)) {
    int head = i, equal = 0;  // pairs before this one of the same expert
    for (int j = 0; j < i; ++j) {
      if (ids[j] != ids[i]) continue;
      if (equal++ % kChunkRows == 0) head = j;
    }
    if (equal % kChunkRows == 0) head = i;
    heads[i] = head;
    places[i] = equal % kChunkRows;
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < pairs; i += int(blockDim.x)) {
    int chunk = 0, columns = 0;
    for (int j = 0; j < heads[i]; ++j) chunk += heads[j] == j;
    for (int j = i; j < pairs; ++j) columns += heads[j] == i;
    chunks.row_and_pair(chunk, places[i]) = i / top_k << 16 | i;
    if (heads[i] == i) chunks.expert(chunk) = ids[i], chunks.columns(chunk) = columns;
    if (i == pairs - 1) {
      for (int j = heads[i]; j < pairs; ++j) chunk += heads[j] == j;
      chunks.count() = chunk;
    }
  }
  __syncthreads();
  return chunks;
}

template <typename Way>
__device__ Chunks chunks_for(const Matrix<const int32_t>& experts, int num_experts, int* shared) {
  if constexpr (Way::kOneRow) return make_chunks_of_row(experts, shared);
  return make_chunks(experts, num_experts, shared);
}

struct GateUpWork {
  struct Cursor {
    int chunk, tile;
  };

  const PackedMatrices& w;
  Chunks chunks;
  bf16* inner;
  int64_t inner_stride;
  int tiles_an_item;
  int tiles_a_chunk;  // as many items have, some of them beyond the last

  __device__ Cursor next(Cursor at, int items) const {
    at.tile += items * tiles_an_item;
    while (at.tile >= tiles_a_chunk) at.tile -= tiles_a_chunk, ++at.chunk;
    return at;
  }
  __device__ int matrix(Cursor at) const { return chunks.expert(at.chunk); }
  __device__ int tile(Cursor at) const { return at.tile; }
  __device__ int columns(Cursor at) const { return chunks.columns(at.chunk); }
  __device__ int pair(Cursor at, int n) const { return chunks.pair(at.chunk, n); }
  __device__ int input_row(Cursor at, int n) const { return chunks.row(at.chunk, n); }
  __device__ void begin() const {}
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
  static __device__ void run(const PackedMatrices& w, const Activations& x, const Work& work,
                             typename Work::Cursor first, int items, int together,
                             uint8_t* shared) {
    stream_products<Unit, kColumns>(w, x, work, first, items, together, shared);
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
    experts_gate_up_stream_kernel(PackedMatrices w, Activations x, Matrix<const int32_t> experts,
                                  int num_experts, bf16* inner, int64_t inner_stride,
                                  int together) {
  extern __shared__ __align__(16) uint8_t shared[];
  wait_for_predecessor();
  // Only now: what the successor reads of the routing before it waits is complete.
  let_successor_begin();
  const Chunks chunks =
      chunks_for<Way>(experts, num_experts,
                      reinterpret_cast<int*>(shared + Way::shared_bytes(int(blockDim.x) / kWarp)));
  const unsigned items_a_chunk = unsigned(w.tiles + together - 1) / unsigned(together);
  const GateUpWork work{w, chunks, inner, inner_stride, together, int(items_a_chunk) * together};
  const unsigned items = unsigned(chunks.count()) * items_a_chunk;
  const unsigned begin = items * blockIdx.x / gridDim.x;
  const unsigned end = items * (blockIdx.x + 1) / gridDim.x;
  const GateUpWork::Cursor first{int(begin / items_a_chunk), int(begin % items_a_chunk) * together};
  Way::run(w, x, work, first, int(end - begin), together, shared);
}

struct DownWork {
  using Cursor = int;  // the chunk

  const PackedMatrices& w;
  Chunks chunks;
  float* products;  // [pair][16 tiles_a_block] in shared memory
  int tiles_a_block, first_tile;

  __device__ Cursor next(Cursor at, int items) const { return at + items; }
  __device__ int matrix(Cursor at) const { return chunks.expert(at); }
  __device__ int tile(Cursor) const { return first_tile; }
  __device__ int columns(Cursor at) const { return chunks.columns(at); }
  __device__ int input_row(Cursor at, int n) const { return chunks.pair(at, n); }
  __device__ void begin() const { wait_for_predecessor(); }
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    float* to = products + (input_row(at, n) * tiles_a_block + tile - first_tile) * kTileRows + i;
    to[0] = low;
    to[8] = high;
  }
};

template <typename Way>
__global__ void __launch_bounds__(Way::kMaxThreads, Way::kBlocks)
    experts_down_stream_kernel(PackedMatrices w, Activations inner, Matrix<const int32_t> experts,
                               Matrix<const float> weights, int num_experts, Results out,
                               int together) {
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  const int top_k = int(experts.cols), pairs = int(experts.rows) * top_k;
  int* lists = reinterpret_cast<int*>(shared + Way::shared_bytes(int(blockDim.x) / kWarp));
  // Before the wait: the gate_up kernel let this one begin after its own predecessors had ended.
  const Chunks chunks = chunks_for<Way>(experts, num_experts, lists);
  auto* products = reinterpret_cast<float*>(lists + chunk_ints(pairs, num_experts));
  const DownWork work{w, chunks, products, together, int(blockIdx.x) * together};
  Way::run(w, inner, work, 0, chunks.count(), together, shared);
  __syncthreads();
  const int outputs = together * kTileRows;
  for (int e = int(threadIdx.x); e < int(experts.rows) * outputs; e += int(blockDim.x)) {
    const int t = e / outputs, place = e % outputs, tile = work.first_tile + place / kTileRows;
    const int row = tile < w.tiles ? row_of(w, tile, place % kTileRows) : -1;
    if (row < 0) continue;
    store(out, t, row,
          sum_of_slots(weights.row(t), products + t * top_k * outputs + place, outputs, top_k));
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
  const Matrix<const int32_t> experts(routing.experts);
  const int pairs = int(experts.rows * experts.cols);
  const size_t list_bytes = size_t(chunk_ints(pairs, num_experts)) * sizeof(int);
  with_way(gate_up.format, x.rows, 4, [&]<typename Way>(Way) {
    const auto kernel = experts_gate_up_stream_kernel<Way>;
    const int warps = Way::warps(gate_up);
    const size_t shared_bytes = Way::shared_bytes(warps) + list_bytes;
    allow_shared(kernel, shared_bytes);
    // One block a multiprocessor where that keeps its warps busy: its beginning costs, too.
    const int processors = context.device.num_processors;
    const int items = max_chunks(pairs, num_experts) * gate_up.tiles;
    const int blocks = items <= processors ? processors : processors * Way::kBlocks;
    launch(context,
           {.blocks = {unsigned(blocks)}, .threads = warps * kWarp, .shared_bytes = shared_bytes},
           kernel, gate_up, x, experts, num_experts,
           static_cast<bf16*>(const_cast<void*>(inner.data)), inner.stride, Way::together(gate_up));
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
           kernel, down, inner, experts, Matrix<const float>(routing.weights), num_experts, out,
           together);
  });
}

}  // namespace nibble::cuda
