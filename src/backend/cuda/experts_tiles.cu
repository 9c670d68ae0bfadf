// experts for many rows: pairs sorted by expert, then tiles (tiles.cuh) of one expert's rows.
//
//   sort     order[place] = pair, experts rising, pairs rising; the list of tiles of 64 places
//   gate_up  inner[place] = silu(gate) * up, rounded to BF16
//   down     products[pair] = down inner
//   combine  the sum over a row's slots
#include "backend/cuda/experts_products.h"
#include "backend/cuda/experts_work.cuh"
#include "backend/cuda/tiles.cuh"

namespace nibble::cuda {
namespace {

constexpr int kSortThreads = 256;
constexpr int kCombineThreads = 256;
constexpr int kMaxExperts = 1024;

struct RowTile {
  int expert = 0, first = 0, columns = 0;  // places first .. first + columns - 1
};

struct Sorted {
  int* num_tiles = nullptr;
  int* order = nullptr;       // [pairs]
  RowTile* tiles = nullptr;   // [max_tiles]
  float* products = nullptr;  // [pairs][outputs]
};

// A block an expert: counts all pairs, then places its own.
__global__ void __launch_bounds__(kSortThreads)
    sort_pairs_kernel(Matrix<const int32_t> experts, int num_experts, Sorted out) {
  __shared__ int counts[kMaxExperts];
  __shared__ int warp_counts[kSortThreads / kWarp];
  const int top_k = int(experts.cols), pairs = int(experts.rows) * top_k;
  const int expert = int(blockIdx.x), warp = int(threadIdx.x) / kWarp;
  let_successor_begin();
  wait_for_predecessor();
  for (int e = int(threadIdx.x); e < num_experts; e += kSortThreads) counts[e] = 0;
  __syncthreads();
  const auto id_of = [&](int pair) { return __ldcg(experts.row(pair / top_k) + pair % top_k); };
  for (int i = int(threadIdx.x); i < pairs; i += kSortThreads) atomicAdd(counts + id_of(i), 1);
  __syncthreads();
  int first = 0, tile = 0;
  for (int e = 0; e < expert; ++e) {
    first += counts[e];
    tile += (counts[e] + kTileColumns - 1) / kTileColumns;
  }
  const int own = counts[expert], tiles = (own + kTileColumns - 1) / kTileColumns;
  for (int i = int(threadIdx.x); i < tiles; i += kSortThreads) {
    const int done = i * kTileColumns;
    out.tiles[tile + i] = {expert, first + done, min(kTileColumns, own - done)};
  }
  if (expert == num_experts - 1 && threadIdx.x == 0) *out.num_tiles = tile + tiles;
  for (int base = 0; base < pairs; base += kSortThreads) {
    const int i = base + int(threadIdx.x);
    const bool mine = i < pairs && id_of(i) == expert;
    const unsigned votes = __ballot_sync(0xffffffffu, mine);
    if (threadIdx.x % kWarp == 0) warp_counts[warp] = __popc(votes);
    __syncthreads();
    int place = first + __popc(votes & ((1u << threadIdx.x % kWarp) - 1));
    for (int w = 0; w < kSortThreads / kWarp; ++w) {
      if (w < warp) place += warp_counts[w];
      first += warp_counts[w];
    }
    if (mine) out.order[place] = i;
    __syncthreads();
  }
}

struct GateUpTile {
  const PackedMatrices& w;
  bf16* inner;
  int64_t inner_stride;
  RowTile tile_of_rows;

  __device__ void begin() const {}
  __device__ void finish(int, int tile, int i, int n, float low, float high) const {
    inner[(tile_of_rows.first + n) * inner_stride + tile * 8 + i] =
        inner_value(w, tile_of_rows.expert, tile, i, low, high);
  }
};

template <typename Unit>
__global__ void __launch_bounds__(kTileThreads, 2)
    experts_gate_up_tiles_kernel(PackedMatrices w, Activations x, Sorted sorted, int top_k,
                                 bf16* inner, int64_t inner_stride) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ int rows[kTileColumns];
  wait_for_predecessor();
  let_successor_begin();
  if (int(blockIdx.y) >= *sorted.num_tiles) return;
  const RowTile tile = sorted.tiles[blockIdx.y];
  for (int n = int(threadIdx.x); n < kTileColumns; n += kTileThreads) {
    rows[n] = n < tile.columns ? sorted.order[tile.first + n] / top_k : -1;
  }
  __syncthreads();
  GateUpTile work{w, inner, inner_stride, tile};
  multiply_tiles<Unit>(w, x, work, tile.expert, int(blockIdx.x) * TileShape<Unit>::kTiles,
                       tile.columns, rows, shared);
}

struct DownTile {
  const PackedMatrices& w;
  Sorted sorted;
  RowTile tile_of_rows;

  __device__ void begin() const {}
  __device__ void finish(int, int tile, int i, int n, float low, float high) const {
    const float* factors = w.factors + (tile_of_rows.expert * w.tiles + tile) * kTileRows;
    float* to = sorted.products + int64_t(sorted.order[tile_of_rows.first + n]) * w.rows;
    const int first = row_of(w, tile, i), second = row_of(w, tile, i + 8);
    if (first >= 0) to[first] = low * factors[i];
    if (second >= 0) to[second] = high * factors[i + 8];
  }
};

template <typename Unit>
__global__ void __launch_bounds__(kTileThreads, 2)
    experts_down_tiles_kernel(PackedMatrices w, Activations inner, Sorted sorted) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ int rows[kTileColumns];
  wait_for_predecessor();
  let_successor_begin();
  if (int(blockIdx.y) >= *sorted.num_tiles) return;
  const RowTile tile = sorted.tiles[blockIdx.y];
  for (int n = int(threadIdx.x); n < kTileColumns; n += kTileThreads) {
    rows[n] = n < tile.columns ? tile.first + n : -1;
  }
  __syncthreads();
  DownTile work{w, sorted, tile};
  multiply_tiles<Unit>(w, inner, work, tile.expert, int(blockIdx.x) * TileShape<Unit>::kTiles,
                       tile.columns, rows, shared);
}

__global__ void __launch_bounds__(kCombineThreads)
    combine_slots_kernel(Matrix<const float> weights, const float* products, int outputs,
                         Results out) {
  let_successor_begin();
  wait_for_predecessor();
  const int n = int(blockIdx.x * blockDim.x + threadIdx.x), t = int(blockIdx.y);
  if (n >= outputs) return;
  const int top_k = int(weights.cols);
  store(out, t, n,
        sum_of_slots(weights.row(t), products + int64_t(t) * top_k * outputs + n, outputs, top_k));
}

int max_tiles(int64_t pairs, int num_experts) {
  return int(std::min<int64_t>(pairs, pairs / kTileColumns + num_experts));
}

}  // namespace

size_t experts_tiles_bytes(int64_t pairs, int num_experts, int64_t outputs) {
  return size_t(pairs * outputs) * sizeof(float) + size_t(pairs) * sizeof(int) +
         size_t(max_tiles(pairs, num_experts)) * sizeof(RowTile) + 4 * sizeof(int);
}

void experts_tiles(const Context& context, const Activations& x, const Routing& routing,
                   const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                   const Activations& inner, const Results& out, void* memory) {
  CHECK(num_experts <= kMaxExperts, "%d experts", num_experts);
  const Matrix<const int32_t> experts(routing.experts);
  const int top_k = int(experts.cols);
  const int64_t pairs = experts.rows * top_k;
  Sorted sorted;
  sorted.products = static_cast<float*>(memory);
  sorted.num_tiles = reinterpret_cast<int*>(sorted.products + pairs * down.rows);
  sorted.order = sorted.num_tiles + 4;
  sorted.tiles = reinterpret_cast<RowTile*>(sorted.order + pairs);
  launch(context, {.blocks = {unsigned(num_experts)}, .threads = kSortThreads}, sort_pairs_kernel,
         experts, num_experts, sorted);
  const unsigned row_tiles = unsigned(max_tiles(pairs, num_experts));
  with_unit(gate_up.format, [&]<typename Unit>(Unit) {
    using Shape = TileShape<Unit>;
    allow_shared(experts_gate_up_tiles_kernel<Unit>, Shape::kSharedBytes);
    launch(context,
           {.blocks = {blocks_for(gate_up.tiles, Shape::kTiles), row_tiles},
            .threads = kTileThreads,
            .shared_bytes = Shape::kSharedBytes},
           experts_gate_up_tiles_kernel<Unit>, gate_up, x, sorted, top_k,
           static_cast<bf16*>(const_cast<void*>(inner.data)), inner.stride);
  });
  with_unit(down.format, [&]<typename Unit>(Unit) {
    using Shape = TileShape<Unit>;
    allow_shared(experts_down_tiles_kernel<Unit>, Shape::kSharedBytes);
    launch(context,
           {.blocks = {blocks_for(down.tiles, Shape::kTiles), row_tiles},
            .threads = kTileThreads,
            .shared_bytes = Shape::kSharedBytes},
           experts_down_tiles_kernel<Unit>, down, inner, sorted);
  });
  launch(context,
         {.blocks = {blocks_for(down.rows, kCombineThreads), unsigned(experts.rows)},
          .threads = kCombineThreads},
         combine_slots_kernel, Matrix<const float>(routing.weights), sorted.products, down.rows,
         out);
}

}  // namespace nibble::cuda
