// experts for several rows (experts.h's formula; stream.cuh's tiling, from some rows on
// sweep.cuh's): the chosen experts' matrices stream once for each 8 or 16 of their rows.
//
//   gate_up  an item = a chunk of an expert's rows x a tile
//   down     a block = a tile of outputs, for all chunks; then the sum over a row's slots
//
// Each block groups the pairs by expert for itself: a hand-over costs more than that.
//
// Hidden 2048, width 1536, 4 of 48 experts, on an H100 80GB HBM3: 8 and 64 rows 74 % of 3.0 TB/s.
// In the whole model, with a shared expert, 64 rows take about 125 us, reading alone 86: bound by
// decoding, which fills the integer units half of the time.
#include <algorithm>
#include <climits>

#include "backend/cuda/experts_products.h"
#include "backend/cuda/experts_work.cuh"
#include "backend/cuda/stream.cuh"
#include "backend/cuda/sweep.cuh"

namespace nibble::cuda {
namespace {

__host__ __device__ int max_chunks(int pairs, int num_experts, int chunk_rows) {
  return min(pairs, num_experts + pairs / chunk_rows);
}

// Which experts rows take.
struct RoutedRows {
  Matrix<int32_t> experts;
  Matrix<float> weights;
  int num_experts = 0;

  __device__ int slots() const { return int(experts.cols); }
  __device__ int pairs() const { return int(experts.rows) * slots(); }
};

// Up to `rows` pairs of one expert, pairs rising; chunks by expert, rising. In shared memory.
struct Chunks {
  int* ints = nullptr;  // how many; then experts, numbers of pairs, pairs
  int max = 0;
  int rows = 1;

  __device__ int& count() const { return ints[0]; }
  __device__ int& expert(int chunk) const { return ints[1 + chunk]; }
  __device__ int& columns(int chunk) const { return ints[1 + max + chunk]; }
  // row * 2^16 + pair
  __device__ int& row_and_pair(int chunk, int n) const {
    return ints[1 + 2 * max + chunk * rows + n];
  }
  __device__ int pair(int chunk, int n) const { return row_and_pair(chunk, n) & 0xffff; }
  __device__ int row(int chunk, int n) const { return row_and_pair(chunk, n) >> 16; }
  __device__ int* end() const { return ints + 1 + max * (2 + rows); }
};

// Of the chunks and, behind them, of what making them takes.
__host__ __device__ int chunk_ints(int pairs, int num_experts, int chunk_rows) {
  const int lists = max_chunks(pairs, num_experts, chunk_rows) * (2 + chunk_rows);
  const int groups = (pairs + kWarp - 1) / kWarp;
  return (1 + lists + 2 * pairs + (groups + 2) * num_experts + 3) / 4 * 4;
}

// Pairs are counted by groups of a warp's, and placed behind those of earlier groups.
__device__ Chunks make_chunks(const RoutedRows& routed, int chunk_rows, int* shared) {
  const int slots = routed.slots(), pairs = routed.pairs(), num_experts = routed.num_experts;
  const int lane = int(threadIdx.x) % kWarp, threads = int(blockDim.x);
  const Chunks chunks{shared, max_chunks(pairs, num_experts, chunk_rows), chunk_rows};
  const int groups = (pairs + kWarp - 1) / kWarp;
  int* ids = chunks.end();
  int* ranks = ids + pairs;     // in the group, of the expert's
  int* counts = ranks + pairs;  // [groups, experts]: then of earlier groups
  int* totals = counts + groups * num_experts;
  int* bases = totals + num_experts;  // its first chunk
  for (int i = int(threadIdx.x); i < groups * num_experts; i += threads) counts[i] = 0;
  __syncthreads();
  for (int i = int(threadIdx.x); i < groups * kWarp; i += threads) {
    const int expert = i < pairs ? __ldcg(routed.experts.row(i / slots) + i % slots) : -1;
    const unsigned same = __match_any_sync(0xffffffffu, expert);
    if (expert < 0) continue;
    const int rank = __popc(same & ((1u << lane) - 1));
    ids[i] = expert, ranks[i] = rank;
    if (rank == 0) counts[i / kWarp * num_experts + expert] = __popc(same);
  }
  __syncthreads();
  for (int e = int(threadIdx.x); e < num_experts; e += threads) {
    int total = 0;
    for (int g = 0; g < groups; ++g) {
      int& count = counts[g * num_experts + e];
      const int own = count;
      count = total, total += own;
    }
    totals[e] = total;
  }
  __syncthreads();
  if (int(threadIdx.x) < kWarp) {
    int total = 0;
    for (int first = 0; first < num_experts; first += kWarp) {
      const int e = first + lane;
      const int own = e < num_experts ? (totals[e] + chunk_rows - 1) / chunk_rows : 0;
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
  for (int e = int(threadIdx.x); e < num_experts; e += threads) {
    for (int c = 0; c * chunk_rows < totals[e]; ++c) {
      chunks.expert(bases[e] + c) = e;
      chunks.columns(bases[e] + c) = min(chunk_rows, totals[e] - c * chunk_rows);
    }
  }
  for (int i = int(threadIdx.x); i < pairs; i += threads) {
    const int place = counts[i / kWarp * num_experts + ids[i]] + ranks[i];
    chunks.row_and_pair(bases[ids[i]] + place / chunk_rows, place % chunk_rows) =
        i / slots << 16 | i;
  }
  __syncthreads();
  return chunks;
}

// The first item of a block, of shares that take equal times: of a chunk with more than
// kRowGroup rows, an item takes kWideCost, of others kCost. By all lanes of a warp.
__device__ int first_item(const Chunks& chunks, int items_a_chunk, int block, int blocks) {
  constexpr int kCost = 6, kWideCost = 7;
  const int lane = int(threadIdx.x) % kWarp, count = chunks.count();
  const auto costs_of = [&](int first, unsigned& wide) {  // of 32 chunks
    const int chunk = first + lane;
    wide = __ballot_sync(0xffffffffu, chunk < count && chunks.columns(chunk) > kRowGroup);
    return min(kWarp, count - first) * kCost + __popc(wide) * (kWideCost - kCost);
  };
  int all = 0;
  unsigned wide;
  for (int first = 0; first < count; first += kWarp) all += costs_of(first, wide);
  const int target = int(int64_t(all) * items_a_chunk * block / blocks);
  int before = 0;  // what the chunks before these take
  for (int first = 0; first < count; first += kWarp) {
    const int cost = costs_of(first, wide) * items_a_chunk;
    if (target < before + cost) {
      const int wider = __popc(wide & ((1u << lane) - 1));
      const int start = before + (lane * kCost + wider * (kWideCost - kCost)) * items_a_chunk;
      const unsigned reached = __ballot_sync(0xffffffffu, first + lane < count && start <= target);
      const int chunk = 31 - __clz(reached);
      const int rest = target - __shfl_sync(0xffffffffu, start, chunk);
      return (first + chunk) * items_a_chunk + rest / (wide >> chunk & 1 ? kWideCost : kCost);
    }
    before += cost;
  }
  return count * items_a_chunk;
}

struct GateUpWork {
  struct Cursor {
    int chunk, tile;
  };

  const PackedMatrices& w;
  Chunks chunks;
  const Activations& x;
  bf16* inner;
  int64_t inner_stride;
  int first, step;  // the block's first item of all, and how many on the next is
  int together;     // tiles of an item
  int items_a_chunk;

  __device__ int segment_of(int item) const { return (first + item) / items_a_chunk; }
  __device__ int segment_begin(int chunk) const { return chunk * items_a_chunk - first; }
  __device__ Cursor cursor_of(int item) const {
    item = first + item * step;
    const int chunk = int(unsigned(item) / unsigned(items_a_chunk));
    return {chunk, (item - chunk * items_a_chunk) * together};
  }
  __device__ Cursor next(Cursor at, int items) const {
    const int tile = at.tile + items * step * together, tiles = items_a_chunk * together;
    const int chunks_on = int(unsigned(tile) / unsigned(tiles));
    return {at.chunk + chunks_on, tile - chunks_on * tiles};
  }
  __device__ int matrix(Cursor at) const { return chunks.expert(at.chunk); }
  __device__ int tile(Cursor at) const { return at.tile; }
  __device__ int columns(Cursor at) const { return chunks.columns(at.chunk); }
  __device__ int pair(Cursor at, int n) const { return chunks.pair(at.chunk, n); }
  __device__ int input_row(Cursor at, int n) const { return chunks.row(at.chunk, n); }
  __device__ int items_known() const { return INT_MAX / kMaxWarps; }
  __device__ void learn_items() const {}
  __device__ Activations begin() const { return x; }
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    inner[pair(at, n) * inner_stride + tile * 8 + i] = from_float<bf16>(silu(low) * high);
  }
};

// How a kernel's warps share the work: a block's warps a tile (stream.cuh), or each its own
// (sweep.cuh).
template <typename Unit>
struct Stream {
  using Shape = StreamShape<Unit, kRowGroup>;
  static constexpr int kBlocks = Shape::kBlocks, kMaxThreads = kMaxWarps * kWarp;
  static constexpr int kChunkRows = kRowGroup;
  static constexpr bool kIsContiguous = true;  // the items of a block

  static __host__ __device__ size_t shared_bytes(int warps) { return Shape::shared_bytes(warps); }
  static __host__ __device__ size_t input_bytes(const PackedMatrices&) { return 0; }
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

// `blocks` a multiprocessor.
template <typename Unit, template <typename> typename Inputs, typename Shares, int blocks>
struct Sweep {
  using Shape = SweepShape<Unit, Inputs<Unit>::kGroups>;
  static constexpr int kBlocks = blocks;
  static constexpr int kWarps = (Unit::kBytes < 2048 ? kMaxSweepWarps : 16) / blocks;
  static constexpr int kMaxThreads = kWarps * kWarp;
  static constexpr int kChunkRows = Inputs<Unit>::kGroups * kRowGroup;
  static constexpr bool kIsContiguous = Inputs<Unit>::kIsStaged;

  static __host__ __device__ size_t shared_bytes(int warps) { return Shape::shared_bytes(warps); }
  static __host__ __device__ size_t input_bytes(const PackedMatrices& w) {
    return Inputs<Unit>::shared_bytes(w);
  }
  // As many as shared memory holds beside `other` bytes.
  static int warps(const Context& context, const PackedMatrices&, size_t other) {
    const size_t left = context.device.shared_bytes - other - shared_bytes(0);
    return std::min(kWarps, int(left / (shared_bytes(1) - shared_bytes(0))));
  }
  static int together(const PackedMatrices&) { return 1; }

  template <typename Work>
  static __device__ void run(const PackedMatrices& w, const Activations& x, const Work& work,
                             int items, int, uint8_t* shared) {
    sweep_products<Unit, Inputs, Shares>(w, x, work, items, shared);
  }
};

template <typename Way>
__global__ void __launch_bounds__(Way::kMaxThreads, Way::kBlocks)
    experts_gate_up_stream_kernel(PackedMatrices w, Activations x, RoutedRows routed, bf16* inner,
                                  int64_t inner_stride, int together) {
  extern __shared__ __align__(16) uint8_t shared[];
  int* lists = reinterpret_cast<int*>(shared + Way::shared_bytes(int(blockDim.x) / kWarp) +
                                      Way::input_bytes(w));
  wait_for_predecessor();
  // Only now: what the successor reads of the routing before it waits is complete.
  let_successor_begin();
  const Chunks chunks = make_chunks(routed, Way::kChunkRows, lists);
  const int items_a_chunk = int(unsigned(w.tiles + together - 1) / unsigned(together));
  const int items = chunks.count() * items_a_chunk, block = int(blockIdx.x);
  const int blocks = int(gridDim.x);
  int first = block, own = items > first ? (items - first + blocks - 1) / blocks : 0;
  if constexpr (Way::kIsContiguous && Way::kChunkRows > kRowGroup) {
    first = first_item(chunks, items_a_chunk, block, blocks);
    own = first_item(chunks, items_a_chunk, block + 1, blocks) - first;
  } else if constexpr (Way::kIsContiguous) {
    first = int(int64_t(items) * block / blocks);
    own = int(int64_t(items) * (block + 1) / blocks) - first;
  }
  const GateUpWork work{.w = w,
                        .chunks = chunks,
                        .x = x,
                        .inner = inner,
                        .inner_stride = inner_stride,
                        .first = first,
                        .step = Way::kIsContiguous ? 1 : blocks,
                        .together = together,
                        .items_a_chunk = items_a_chunk};
  Way::run(w, x, work, own, together, shared);
}

struct DownWork {
  using Cursor = int;  // the chunk

  Chunks chunks;
  float* products;  // [pairs, kTileRows]
  int own_tile;

  __device__ Cursor cursor_of(int item) const { return item; }
  __device__ int matrix(Cursor at) const { return chunks.expert(at); }
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
  const Chunks chunks = make_chunks(routed, Way::kChunkRows, lists);
  auto* products =
      reinterpret_cast<float*>(lists + chunk_ints(pairs, routed.num_experts, Way::kChunkRows));
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

constexpr int kMostStreamed = 4;

// Calls run(Way()) with gate_up's way for a number of rows. With few, a tile a warp leaves most
// warps without one; with many, it pays to share inputs and to decode for 16 rows at once.
template <typename Run>
void with_way(const Context& context, Format format, int rows, Run&& run) {
  constexpr int kMostOwn = 32;
  constexpr size_t kStagedBytes = 160 << 10;
  const bool stages = rows > kMostOwn && context.device.shared_bytes > kStagedBytes;
  with_unit(format, [&]<typename Unit>(Unit) {
    constexpr int kBlocks = Unit::kProducts == 1 ? 3 : 2;
    if (rows <= kMostStreamed) return run(Stream<Unit>());
    if (stages) return run(Sweep<Unit, StagedInputs, Balanced, 1>());
    run(Sweep<Unit, OwnInputs, InTurn, kBlocks>());
  });
}

// The same of down: all the warps of a multiprocessor share a tile.
template <typename Run>
void with_down_way(Format format, int rows, Run&& run) {
  with_unit(format, [&]<typename Unit>(Unit) {
    if (rows <= kMostStreamed) return run(Sweep<Unit, OwnInputs, InTurn, 1>());
    run(Sweep<Unit, OwnInputs, Balanced, 1>());
  });
}

}  // namespace

void experts_stream(const Context& context, const Activations& x, const Routing& routing,
                    const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                    const Activations& inner, const Results& out) {
  const RoutedRows routed{Matrix<int32_t>(routing.experts), Matrix<float>(routing.weights),
                          num_experts};
  const int pairs = int(routing.experts.rows * routing.experts.cols);
  const auto list_bytes = [&](int chunk_rows) {
    return size_t(chunk_ints(pairs, num_experts, chunk_rows)) * sizeof(int);
  };
  with_way(context, gate_up.format, x.rows, [&]<typename Way>(Way) {
    const auto kernel = experts_gate_up_stream_kernel<Way>;
    const size_t other_bytes = Way::input_bytes(gate_up) + list_bytes(Way::kChunkRows);
    const int warps = Way::warps(context, gate_up, other_bytes);
    const size_t shared_bytes = Way::shared_bytes(warps) + other_bytes;
    allow_shared(kernel, shared_bytes);
    const int blocks = context.device.num_processors * Way::kBlocks;
    launch(context,
           {.blocks = {unsigned(blocks)}, .threads = warps * kWarp, .shared_bytes = shared_bytes},
           kernel, gate_up, x, routed, static_cast<bf16*>(const_cast<void*>(inner.data)),
           inner.stride, Way::together(gate_up));
  });
  with_down_way(down.format, x.rows, [&]<typename Way>(Way) {
    const auto kernel = experts_down_stream_kernel<Way>;
    const size_t other_bytes =
        list_bytes(Way::kChunkRows) + size_t(pairs * kTileRows) * sizeof(float);
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
