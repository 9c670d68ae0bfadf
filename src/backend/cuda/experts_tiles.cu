// experts for many rows: pairs sorted by expert, then tiles (tiles.cuh or warpgroup_tiles.cuh) of
// one expert's rows.
//
//   sort     order[place] = pair, experts rising, pairs rising; the list of row tiles
//   gate_up  inner[place] = silu(gate) * up, rounded to BF16
//   down     products[pair] = down inner
//   combine  the sum over a row's slots
//
// NVFP4, hidden 2048, width 1536, 4 of 48 experts, on an H100 80GB HBM3: 2,048 rows 562 us, 275
// TFLOP/s of 790; 512 rows 184 us, 210 TFLOP/s. A ninth of the multiplied columns is empty at 2,048
// rows, a third at 512.
#include "backend/cuda/experts_products.h"
#include "backend/cuda/experts_work.cuh"
#include "backend/cuda/slots.cuh"
#include "backend/cuda/tile_ways.cuh"

namespace nibble::cuda {
namespace {

constexpr int kSortThreads = 1024;
constexpr int kMaxExperts = 1024;
constexpr int kSmallestTile = 64, kLargestTile = 128;  // rows of activations

struct RowTile {
  int expert = 0, first = 0, columns = 0;  // places first .. first + columns - 1
};

struct Sorted {
  int* num_tiles = nullptr;
  int* order = nullptr;       // [pairs]
  RowTile* tiles = nullptr;   // [max_tiles]
  float* products = nullptr;  // [pairs][outputs]
  int tile_rows = 0;
};

// A block an expert: its warps count all pairs, a run of them each, then place the expert's own.
__global__ void __launch_bounds__(kSortThreads)
    sort_pairs_kernel(Matrix<const int32_t> experts, int num_experts, Sorted out) {
  __shared__ int counts[kMaxExperts];
  __shared__ int warp_counts[kSortThreads / kWarp];
  const int top_k = int(experts.cols), pairs = int(experts.rows) * top_k;
  const int expert = int(blockIdx.x), warp = int(threadIdx.x) / kWarp;
  const int lane = int(threadIdx.x) % kWarp;
  constexpr int kWarps = kSortThreads / kWarp, kLoads = 4;
  const int run = (pairs + kWarps * kWarp - 1) / (kWarps * kWarp) * kWarp;
  const int begin = min(pairs, warp * run), end = min(pairs, begin + run);
  let_successor_begin();
  wait_for_predecessor();
  for (int e = int(threadIdx.x); e < num_experts; e += kSortThreads) counts[e] = 0;
  __syncthreads();
  const bool is_dense = experts.stride == top_k;
  const auto id_of = [&](int pair) {
    if (pair >= end) return -1;
    return is_dense ? experts.data[pair] : experts.row(pair / top_k)[pair % top_k];
  };
  int own = 0;
  for (int i = begin + lane; i < begin + run; i += kLoads * kWarp) {
    int ids[kLoads];
#pragma unroll
    for (int k = 0; k < kLoads; ++k) ids[k] = id_of(i + k * kWarp);
#pragma unroll
    for (int k = 0; k < kLoads; ++k) {
      if (ids[k] >= 0) atomicAdd(counts + ids[k], 1);
      own += __popc(__ballot_sync(0xffffffffu, ids[k] == expert));
    }
  }
  if (lane == 0) warp_counts[warp] = own;
  __syncthreads();
  int first = 0, tile = 0;
  for (int e = 0; e < expert; ++e) {
    first += counts[e];
    tile += (counts[e] + out.tile_rows - 1) / out.tile_rows;
  }
  const int all = counts[expert], tiles = (all + out.tile_rows - 1) / out.tile_rows;
  for (int i = int(threadIdx.x); i < tiles; i += kSortThreads) {
    const int done = i * out.tile_rows;
    out.tiles[tile + i] = {expert, first + done, min(out.tile_rows, all - done)};
  }
  if (expert == num_experts - 1 && threadIdx.x == 0) *out.num_tiles = tile + tiles;
  for (int w = 0; w < warp; ++w) first += warp_counts[w];
  for (int i = begin + lane; i < begin + run; i += kWarp) {
    const unsigned votes = __ballot_sync(0xffffffffu, id_of(i) == expert);
    if (votes >> lane & 1) out.order[first + __popc(votes & ((1u << lane) - 1))] = i;
    first += __popc(votes);
  }
}

// kSlots: a row tile's rows of x, one after another.
template <typename In>
__global__ void gather_slots_kernel(Matrix<In> x, Sorted sorted, int top_k, int pieces, bf16* out) {
  let_successor_begin();
  wait_for_predecessor();
  if (int(blockIdx.y) >= *sorted.num_tiles) return;
  const RowTile tile = sorted.tiles[blockIdx.y];
  const int piece = int(blockIdx.x) * 8 + int(threadIdx.x % 8);
  bf16* to = out + int64_t(blockIdx.y) * sorted.tile_rows * pieces * 8;
  for (int n = int(threadIdx.x / 8); n < tile.columns; n += int(blockDim.x / 8)) {
    write_piece(x.row(sorted.order[tile.first + n] / top_k), int(x.cols), n, piece,
                sorted.tile_rows, to);
  }
}

template <typename Tiles>
struct GateUpTile {
  struct Cursor {};

  const PackedMatrices& w;
  bf16* inner;  // kPlain: [places][stride]; kSlots: tiles of padded columns
  int stride;
  RowTile tile_of_rows;

  __device__ void begin() const {}
  __device__ void finish(Cursor, int tile, int i, int n, float low, float high) const {
    const int column = tile * 8 + i;
    const bf16 value = from_float<bf16>(silu(low) * high);
    if constexpr (Tiles::kOrder == Order::kPlain) {
      inner[int64_t(tile_of_rows.first + n) * stride + column] = value;
    } else {
      bf16* to = inner + int64_t(blockIdx.y) * Tiles::kColumns * stride;
      to[slot_of(n, column, Tiles::kColumns)] = value;
      if (tile + 1 < w.tiles) return;
      for (int k = column + 8; k < stride; k += 8) to[slot_of(n, k, Tiles::kColumns)] = bf16(0.0f);
    }
  }
};

struct DownTile {
  struct Cursor {};

  const PackedMatrices& w;
  Sorted sorted;
  RowTile tile_of_rows;

  __device__ void begin() const {}
  __device__ void finish(Cursor, int tile, int i, int n, float low, float high) const {
    float* to = sorted.products + int64_t(sorted.order[tile_of_rows.first + n]) * w.rows;
    const int first = row_of(w, tile, i), second = row_of(w, tile, i + 8);
    if (first >= 0) to[first] = low;
    if (second >= 0) to[second] = high;
  }
};

template <typename Tiles>
__global__ void __launch_bounds__(Tiles::kThreads, Tiles::kBlocks)
    experts_gate_up_tiles_kernel(PackedMatrices w, Activations x, Sorted sorted, int top_k,
                                 bf16* inner, int inner_stride) {
  extern __shared__ __align__(kSharedAlignment) uint8_t shared[];
  __shared__ int rows[Tiles::kColumns];
  let_successor_begin();
  wait_for_predecessor();
  if (int(blockIdx.y) >= *sorted.num_tiles) return;
  const RowTile tile = sorted.tiles[blockIdx.y];
  for (int n = int(threadIdx.x); n < Tiles::kColumns; n += Tiles::kThreads) {
    rows[n] = n < tile.columns ? sorted.order[tile.first + n] / top_k : -1;
  }
  __syncthreads();
  const GateUpTile<Tiles> work{w, inner, inner_stride, tile};
  Tiles::multiply(w, x, work, tile.expert, int(blockIdx.x) * Tiles::kTiles, int(blockIdx.y),
                  tile.columns, rows, shared);
}

template <typename Tiles>
__global__ void __launch_bounds__(Tiles::kThreads, Tiles::kBlocks)
    experts_down_tiles_kernel(PackedMatrices w, Activations inner, Sorted sorted) {
  extern __shared__ __align__(kSharedAlignment) uint8_t shared[];
  __shared__ int rows[Tiles::kColumns];
  let_successor_begin();
  wait_for_predecessor();
  if (int(blockIdx.y) >= *sorted.num_tiles) return;
  const RowTile tile = sorted.tiles[blockIdx.y];
  for (int n = int(threadIdx.x); n < Tiles::kColumns; n += Tiles::kThreads) {
    rows[n] = n < tile.columns ? tile.first + n : -1;
  }
  __syncthreads();
  const DownTile work{w, sorted, tile};
  Tiles::multiply(w, inner, work, tile.expert, int(blockIdx.x) * Tiles::kTiles, int(blockIdx.y),
                  tile.columns, rows, shared);
}

int max_tiles(int64_t pairs, int num_experts, int tile_rows) {
  return int(std::min<int64_t>(pairs, pairs / tile_rows + num_experts));
}

size_t aligned(size_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// What lies in experts_tiles()'s memory, one after another.
struct Layout {
  size_t products, order, tiles, inner, inputs, all;
};

Layout layout_of(const Tensor& x, int64_t pairs, const PackedMatrices& gate_up,
                 const PackedMatrices& down, int num_experts) {
  // In either order and with tiles of any size: whole tiles of padded columns.
  const int64_t places = pairs + int64_t(num_experts) * kLargestTile;
  Layout at{};
  at.order = at.products + aligned(size_t(pairs * down.rows) * sizeof(float));
  at.tiles = at.order + aligned(size_t(pairs + 1) * sizeof(int));
  at.inner =
      at.tiles + aligned(size_t(max_tiles(pairs, num_experts, kSmallestTile)) * sizeof(RowTile));
  at.inputs = at.inner + aligned(size_t(places * padded_columns(gate_up.rows / 2)) * sizeof(bf16));
  at.all = at.inputs + aligned(size_t(places * padded_columns(x.cols)) * sizeof(bf16));
  return at;
}

}  // namespace

size_t experts_tiles_bytes(const Tensor& x, int64_t pairs, const PackedMatrices& gate_up,
                           const PackedMatrices& down, int num_experts) {
  return layout_of(x, pairs, gate_up, down, num_experts).all;
}

void experts_tiles(const Context& context, const Tensor& x, const Routing& routing,
                   const PackedMatrices& gate_up, const PackedMatrices& down, int num_experts,
                   const Results& out, void* memory) {
  CHECK(num_experts <= kMaxExperts, "%d experts", num_experts);
  const Matrix<const int32_t> experts(routing.experts);
  const int top_k = int(experts.cols);
  const int64_t pairs = experts.rows * top_k;
  const Layout at = layout_of(x, pairs, gate_up, down, num_experts);
  auto* base = static_cast<char*>(memory);
  Sorted sorted{.num_tiles = reinterpret_cast<int*>(base + at.order),
                .order = reinterpret_cast<int*>(base + at.order) + 1,
                .tiles = reinterpret_cast<RowTile*>(base + at.tiles),
                .products = reinterpret_cast<float*>(base + at.products)};
  auto* inner = reinterpret_cast<bf16*>(base + at.inner);
  Activations inputs, inner_inputs;
  unsigned row_tiles = 0;
  const int columns = int(pairs / num_experts);
  with_tiles(context, gate_up.format, columns, [&]<typename Tiles>(Tiles) {
    sorted.tile_rows = Tiles::kColumns;
    row_tiles = unsigned(max_tiles(pairs, num_experts, Tiles::kColumns));
    launch(context, {.blocks = {unsigned(num_experts)}, .threads = kSortThreads}, sort_pairs_kernel,
           experts, num_experts, sorted);
    const int inner_cols = gate_up.tiles * kTileRows / 2;
    if (Tiles::kOrder == Order::kPlain) {
      inputs = inputs_of(context, x, base + at.inputs);
      inner_inputs = {inner, inner_cols, int(pairs), inner_cols};
    } else {
      const int64_t cols = padded_columns(x.cols), padded = padded_columns(inner_cols);
      with_activation(x.dtype, [&]<typename In>(In) {
        launch(context, {.blocks = {unsigned(cols / 64), row_tiles}, .threads = kSortThreads},
               gather_slots_kernel<In>, Matrix<In>(x), sorted, top_k, int(cols / 8),
               reinterpret_cast<bf16*>(base + at.inputs));
      });
      inputs = {base + at.inputs, cols, int(x.rows), int(cols)};
      inner_inputs = {inner, padded, int(pairs), int(padded)};
    }
    allow_shared(experts_gate_up_tiles_kernel<Tiles>, Tiles::kSharedBytes);
    launch(context,
           {.blocks = {blocks_for(gate_up.tiles, Tiles::kTiles), row_tiles},
            .threads = Tiles::kThreads,
            .shared_bytes = Tiles::kSharedBytes},
           experts_gate_up_tiles_kernel<Tiles>, gate_up, inputs, sorted, top_k, inner,
           int(inner_inputs.stride));
  });
  with_tiles(context, down.format, columns, [&]<typename Tiles>(Tiles) {
    allow_shared(experts_down_tiles_kernel<Tiles>, Tiles::kSharedBytes);
    launch(context,
           {.blocks = {blocks_for(down.tiles, Tiles::kTiles), row_tiles},
            .threads = Tiles::kThreads,
            .shared_bytes = Tiles::kSharedBytes},
           experts_down_tiles_kernel<Tiles>, down, inner_inputs, sorted);
  });
  combine_slots(
      context,
      {.weights = routing.weights, .products = sorted.products, .outputs = down.rows, .out = out});
}

}  // namespace nibble::cuda
