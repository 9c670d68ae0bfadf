// experts for few rows (experts.h's formula, stream.cuh's tiling): the chosen experts' matrices
// stream once for all their rows.
//
//   gate_up  an item = an expert's chunk of rows x the tiles of a block; items shared evenly
//   down     a block = the tiles of some outputs, for all chunks; then the sum over a row's slots
//
// Each block groups the pairs by expert for itself: a hand-over costs more than that.
#include "backend/cuda/experts_products.h"
#include "backend/cuda/experts_work.cuh"
#include "backend/cuda/stream.cuh"

namespace nibble::cuda {
namespace {

// Pairs of one expert, at most `capacity` a chunk, pairs rising; chunks in the order of their first
// pair. In shared memory.
struct Chunks {
  int capacity = 0;
  int* count = nullptr;
  int* experts = nullptr;  // [count]
  int* columns = nullptr;  // [count] how many pairs
  int* pairs = nullptr;    // [count][capacity]
};

__host__ __device__ int max_chunks(int pairs, int num_experts, int capacity) {
  return min(pairs, num_experts + pairs / capacity);
}

__host__ __device__ int chunk_ints(int pairs, int num_experts, int capacity) {
  return 4 + 3 * pairs + max_chunks(pairs, num_experts, capacity) * (2 + capacity);
}

__device__ Chunks make_chunks(const Matrix<const int32_t>& experts, int num_experts, int capacity,
                              int* shared) {
  const int top_k = int(experts.cols), pairs = int(experts.rows) * top_k;
  int* ids = shared + 4;
  int* heads = ids + pairs;     // first pair of this pair's chunk
  int* places = heads + pairs;  // its chunk, for a head; else its column
  Chunks chunks{.capacity = capacity, .count = shared};
  chunks.experts = places + pairs;
  chunks.columns = chunks.experts + max_chunks(pairs, num_experts, capacity);
  chunks.pairs = chunks.columns + max_chunks(pairs, num_experts, capacity);
  for (int i = int(threadIdx.x); i < pairs; i += int(blockDim.x)) {
    ids[i] = __ldcg(experts.row(i / top_k) + i % top_k);
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < pairs; i += int(blockDim.x)) {
    int head = i, equal = 0;  // pairs before this one of the same expert
    for (int j = 0; j < i; ++j) {
      if (ids[j] != ids[i]) continue;
      if (equal++ % capacity == 0) head = j;
    }
    if (equal % capacity == 0) head = i;
    heads[i] = head;
    places[i] = equal % capacity;
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < pairs; i += int(blockDim.x)) {
    int chunk = 0, columns = 0;
    for (int j = 0; j < heads[i]; ++j) chunk += heads[j] == j;
    for (int j = i; j < pairs; ++j) columns += heads[j] == i;
    chunks.pairs[chunk * capacity + places[i]] = i;
    if (heads[i] == i) chunks.experts[chunk] = ids[i], chunks.columns[chunk] = columns;
    if (i == pairs - 1) {
      for (int j = heads[i]; j < pairs; ++j) chunk += heads[j] == j;
      *chunks.count = chunk;
    }
  }
  __syncthreads();
  return chunks;
}

struct GateUpWork {
  const PackedMatrices& w;
  const Chunks& chunks;
  bf16* inner;
  int64_t inner_stride;
  int top_k, tiles_an_item, items_a_chunk;

  __device__ int matrix(int item) const { return chunks.experts[item / items_a_chunk]; }
  __device__ int tile(int item, int sub) const {
    return item % items_a_chunk * tiles_an_item + sub;
  }
  __device__ int pair(int item, int n) const {
    return chunks.pairs[item / items_a_chunk * chunks.capacity + n];
  }
  __device__ int columns(int item) const { return chunks.columns[item / items_a_chunk]; }
  __device__ int input_row(int item, int n) const {
    return n < columns(item) ? pair(item, n) / top_k : -1;
  }
  __device__ void begin() const {}
  __device__ void finish(int item, int tile, int i, int n, float low, float high) const {
    inner[pair(item, n) * inner_stride + tile * 8 + i] =
        inner_value(w, matrix(item), tile, i, low, high);
  }
};

template <typename Unit, int groups>
__global__ void __launch_bounds__(kMaxWarps* kWarp, kStreamBlocks<Unit, groups>)
    experts_gate_up_stream_kernel(PackedMatrices w, Activations x, Matrix<const int32_t> experts,
                                  int num_experts, bf16* inner, int64_t inner_stride) {
  extern __shared__ __align__(16) uint8_t shared[];
  wait_for_predecessor();
  // Only now: what the successor reads of the routing before it waits is complete.
  let_successor_begin();
  const size_t used = stream_shared_bytes<Unit>(int(blockDim.x) / kWarp);
  const Chunks chunks =
      make_chunks(experts, num_experts, groups * kRowGroup, reinterpret_cast<int*>(shared + used));
  const int together = int(blockDim.x) / kWarp / w.slices;
  const int items_a_chunk = (w.tiles + together - 1) / together;
  GateUpWork work{w, chunks, inner, inner_stride, int(experts.cols), together, items_a_chunk};
  const int64_t items = int64_t(*chunks.count) * items_a_chunk;
  stream_products<Unit, groups>(w, x, work, int(items * blockIdx.x / gridDim.x),
                                int(items * (blockIdx.x + 1) / gridDim.x), shared);
}

struct DownWork {
  const PackedMatrices& w;
  const Chunks& chunks;
  float* products;  // [pair][16 tiles_a_block] in shared memory
  int tiles_a_block, first_tile;

  __device__ int matrix(int item) const { return chunks.experts[item]; }
  __device__ int tile(int, int sub) const { return first_tile + sub; }
  __device__ int columns(int item) const { return chunks.columns[item]; }
  __device__ int pair(int item, int n) const { return chunks.pairs[item * chunks.capacity + n]; }
  __device__ int input_row(int item, int n) const { return n < columns(item) ? pair(item, n) : -1; }
  __device__ void begin() const {
    let_successor_begin();
    wait_for_predecessor();
  }
  __device__ void finish(int item, int tile, int i, int n, float low, float high) const {
    const float* factors = w.factors + (matrix(item) * w.tiles + tile) * kTileRows;
    float* to = products + (pair(item, n) * tiles_a_block + tile - first_tile) * kTileRows + i;
    to[0] = low * factors[i];
    to[8] = high * factors[i + 8];
  }
};

template <typename Unit, int groups>
__global__ void __launch_bounds__(kMaxWarps* kWarp, kStreamBlocks<Unit, groups>)
    experts_down_stream_kernel(PackedMatrices w, Activations inner, Matrix<const int32_t> experts,
                               Matrix<const float> weights, int num_experts, Results out) {
  extern __shared__ __align__(16) uint8_t shared[];
  const int together = int(blockDim.x) / kWarp / w.slices, top_k = int(experts.cols);
  const int pairs = int(experts.rows) * top_k;
  auto* lists = reinterpret_cast<int*>(shared + stream_shared_bytes<Unit>(int(blockDim.x) / kWarp));
  // Before the wait: the gate_up kernel let this one begin after its own predecessors had ended.
  const Chunks chunks = make_chunks(experts, num_experts, groups * kRowGroup, lists);
  auto* products =
      reinterpret_cast<float*>(lists + chunk_ints(pairs, num_experts, groups * kRowGroup));
  DownWork work{w, chunks, products, together, int(blockIdx.x) * together};
  stream_products<Unit, groups>(w, inner, work, 0, *chunks.count, shared);
  __syncthreads();
  const int outputs = together * kTileRows;
  for (int e = int(threadIdx.x); e < int(experts.rows) * outputs; e += int(blockDim.x)) {
    const int t = e / outputs, place = e % outputs;
    const int tile = work.first_tile + place / kTileRows;
    const int row = tile < w.tiles ? row_of(w, tile, place % kTileRows) : -1;
    if (row < 0) continue;
    store(out, t, row,
          sum_of_slots(weights.row(t), products + t * top_k * outputs + place, outputs, top_k));
  }
}

}  // namespace

void experts_stream(const Context& context, const Activations& x, const Routing& routing,
                    const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                    const Activations& inner, const Results& out) {
  const Matrix<const int32_t> experts(routing.experts);
  const int pairs = int(experts.rows * experts.cols);
  const auto run = [&]<typename Unit, int groups>(Unit, std::integral_constant<int, groups>) {
    const size_t lists = size_t(chunk_ints(pairs, num_experts, groups * kRowGroup)) * sizeof(int);
    const int together = tiles_together(gate_up), warps = together * gate_up.slices;
    const size_t gate_up_bytes = stream_shared_bytes<Unit>(warps) + lists;
    const auto gate_up_kernel = experts_gate_up_stream_kernel<Unit, groups>;
    allow_shared(gate_up_kernel, gate_up_bytes);
    const int chunks = max_chunks(pairs, num_experts, groups * kRowGroup);
    const unsigned room = unsigned(context.device.num_processors * kStreamBlocks<Unit, groups>);
    launch(context,
           {.blocks = {std::min(room, unsigned(chunks) * blocks_for(gate_up.tiles, together))},
            .threads = warps * kWarp,
            .shared_bytes = gate_up_bytes},
           gate_up_kernel, gate_up, x, experts, num_experts,
           static_cast<bf16*>(const_cast<void*>(inner.data)), inner.stride);
  };
  const auto run_down = [&]<typename Unit, int groups>(Unit, std::integral_constant<int, groups>) {
    // The products of all pairs stay in shared memory: fewer tiles at once for more pairs.
    const int together = std::clamp(512 / pairs, 1, tiles_together(down));
    const int warps = together * down.slices;
    const size_t bytes = stream_shared_bytes<Unit>(warps) +
                         size_t(chunk_ints(pairs, num_experts, groups * kRowGroup)) * sizeof(int) +
                         size_t(pairs * together * kTileRows) * sizeof(float);
    const auto kernel = experts_down_stream_kernel<Unit, groups>;
    allow_shared(kernel, bytes);
    launch(context,
           {.blocks = {blocks_for(down.tiles, together)},
            .threads = warps * kWarp,
            .shared_bytes = bytes},
           kernel, down, inner, experts, Matrix<const float>(routing.weights), num_experts, out);
  };
  const auto with_groups = [&](Format format, auto&& body) {
    with_unit(format, [&]<typename Unit>(Unit unit) {
      if (x.rows <= kRowGroup) return body(unit, std::integral_constant<int, 1>());
      body(unit, std::integral_constant<int, 2>());
    });
  };
  with_groups(gate_up.format, run);
  with_groups(down.format, run_down);
}

}  // namespace nibble::cuda
