// The kernels of head.h, one after another:
//   norms   |x| of each row
//   codes   all elements from INT8, and each block's best less its bound
//   again   the candidates of a part of a row, each by a block, a slice of K a warp
//   whole   rows with too many candidates, from BF16; seldom any
// What is computed again has the order of sums of packed.h: the bits of a linear.
//
// us on an H100 80GB HBM3 for 154880 x 2048, each by itself, by a build before: 1 row 2.8, 121 (87
// % of 3.0 TB/s), 8.5 and 3.0; 64 rows 2.9, 152, 76 and 3.0, with random weights, which leave tens
// of candidates a row.
#include "backend/backend.h"
#include "backend/cuda/dtypes.h"
#include "backend/cuda/head.h"
#include "backend/cuda/head_unit.cuh"
#include "backend/cuda/linear_work.cuh"
#include "backend/cuda/stream.cuh"
#include "backend/cuda/tiles.cuh"
#include "backend/cuda/warpgroup_tiles.cuh"

namespace nibble::cuda {
namespace {

constexpr int kNormThreads = 256;
constexpr int kAgainThreads = kMaxSlices * kWarp;
constexpr int kPart = 2 * kAgainThreads;  // elements of a row that a block looks through
constexpr int kMostColumns = 64;          // of a block of `codes`

// Between the kernels, in the workspace.
struct State {
  float* norms = nullptr;      // [T], a little high
  int* candidates = nullptr;   // [T]: how many
  unsigned* floors = nullptr;  // [T]: rank_of() of the best less its bound
};

// Rises with the value; that of -infinity is above 0.
__device__ __forceinline__ unsigned rank_of(float value) {
  const unsigned bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(unsigned rank) {
  return __uint_as_float(rank & 0x80000000u ? rank & 0x7fffffffu : ~rank);
}

__global__ void __launch_bounds__(kNormThreads) head_norms_kernel(Activations x, State state) {
  __shared__ float shared[kWarp];
  let_successor_begin();
  wait_for_predecessor();
  const auto* row = static_cast<const bf16*>(x.data) + blockIdx.x * x.stride;
  float square = 0;
  for (int k = int(threadIdx.x); k < x.cols; k += kNormThreads) {
    square = fmaf(to_float(row[k]), to_float(row[k]), square);
  }
  square = block_sum(square, shared);
  if (threadIdx.x > 0) return;
  state.norms[blockIdx.x] = sqrtf(square) * (1 + 1e-4f);
  state.candidates[blockIdx.x] = 0;
  state.floors[blockIdx.x] = 0;
}

// Takes the products of the codes. `kMeet`: lanes of the same lane % 4 come together with the same
// column, as in tiles.
template <bool kMeet>
struct CodesWork : LinearWork {
  Activations x;
  State state;
  float error = 0;
  unsigned* best = nullptr;  // [kMostColumns], shared
  float* norms = nullptr;    // [kMostColumns], shared

  __device__ Activations begin() const {
    wait_for_predecessor();
    for (int n = int(threadIdx.x); n < rows; n += int(blockDim.x)) {
      norms[n] = state.norms[first_row + n] * error;
      best[n] = 0;
    }
    if (kMeet) __syncthreads();  // stream.cuh meets before it comes to finish()
    return x;
  }
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    LinearWork::finish(at, tile, i, n, low, high);
    const int row = tile * kTileRows + i;
    const float norm = norms[n];
    const float low_floor = low - norm * w.factors[row],
                high_floor = high - norm * w.factors[row + 8];
    unsigned rank = 0;
    if (row < w.rows && low_floor == low_floor) rank = rank_of(low_floor);
    if (row + 8 < w.rows && high_floor == high_floor) rank = max(rank, rank_of(high_floor));
    if (kMeet) {
      const unsigned lanes = 0x11111111u << (threadIdx.x % 4);
#pragma unroll
      for (int offset = 4; offset < kWarp; offset *= 2) {
        rank = max(rank, __shfl_xor_sync(lanes, rank, offset));
      }
      if (threadIdx.x % kWarp >= 4) return;
    }
    atomicMax(&best[n], rank);
  }
  __device__ void end() const {
    __syncthreads();
    for (int n = int(threadIdx.x); n < rows; n += int(blockDim.x)) {
      atomicMax(&state.floors[first_row + n], best[n]);
    }
  }
};

template <int kColumns>
__global__ void __launch_bounds__(kMaxWarps* kWarp, StreamShape<Int8Unit, kColumns>::kBlocks)
    head_stream_kernel(PackedMatrices w, Activations x, Results out, State state, float error,
                       int items, int together) {
  extern __shared__ __align__(kSharedAlignment) uint8_t shared[];
  __shared__ unsigned best[kColumns];
  __shared__ float norms[kColumns];
  let_successor_begin();
  const LinearWork plain{.w = w, .out = out, .rows = x.rows, .tiles_an_item = together};
  const CodesWork<false> work{plain, x, state, error, best, norms};
  const int begin = int(unsigned(items) * blockIdx.x / gridDim.x);
  const int end = int(unsigned(items) * (blockIdx.x + 1) / gridDim.x);
  stream_products<Int8Unit, kColumns>(w, work, begin * together, end - begin, together, shared);
  work.end();
}

template <typename Tiles>
__global__ void __launch_bounds__(Tiles::kThreads, Tiles::kBlocks)
    head_tiles_kernel(PackedMatrices w, Activations x, int x_rows, Results out, State state,
                      float error) {
  extern __shared__ __align__(kSharedAlignment) uint8_t shared[];
  __shared__ int rows[Tiles::kColumns];
  __shared__ unsigned best[kMostColumns];
  __shared__ float norms[kMostColumns];
  let_successor_begin();
  const int first = int(blockIdx.y) * Tiles::kColumns;
  const int columns = min(Tiles::kColumns, x_rows - first);
  for (int n = int(threadIdx.x); n < Tiles::kColumns; n += Tiles::kThreads) {
    rows[n] = n < columns ? first + n : -1;
  }
  __syncthreads();
  const LinearWork plain{.w = w, .out = out, .rows = columns, .first_row = first};
  const CodesWork<true> work{plain, x, state, error, best, norms};
  Tiles::multiply(w, x, work, 0, int(blockIdx.x) * Tiles::kTiles, int(blockIdx.y), columns, rows,
                  shared);
  work.end();
}

constexpr int kTogether = 4;  // elements of a row computed again at once

// The sums over this warp's slice of `count` elements of row `t` from BF16: all on their way at
// once.
__device__ __forceinline__ void sum_slice_again(const PackedMatrices& w, const Activations& x,
                                                int64_t t, const int* found, int count,
                                                float (*sums)[kMaxSlices]) {
  const int warp = int(threadIdx.x / kWarp), lane = int(threadIdx.x % kWarp), g = lane / 4;
  const int first = warp * w.units_per_slice, end = min(w.units, first + w.units_per_slice);
  float sum[kTogether][4] = {};
#pragma unroll 1
  for (int unit = first; unit < end; ++unit) {
    Bf16Unit::Registers r[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int n = i < count ? found[i] : 0;
      const auto* from = w.data + size_t(n / kTileRows) * w.tile_bytes +
                         size_t(unit) * Bf16Unit::kBytes + lane * 16;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        r[i].values[0][j] = make_uint4(0, 0, 0, 0);
        if (i < count && g == n % 8) {
          r[i].values[0][j] = *reinterpret_cast<const uint4*>(from + j * 512);
        }
      }
    }
    uint32_t b[8];
    load_inputs(x, g == 0 ? t : -1, unit * Bf16Unit::kInputs + lane % 4 * kBlockInputs, b);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) multiply_chunk<Bf16Unit>(sum[i], r[i], 0, b);
  }
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    if (i >= count) break;
    const int place = found[i] % kTileRows;
    if (lane == place % 8 * 4) sums[i][warp] = place < 8 ? sum[i][0] : sum[i][2];
  }
}

// Elements `found` of row `t` from BF16, by all threads. `sums`: [kTogether, kMaxSlices].
__device__ void compute_again(const PackedMatrices& w, const Activations& x, int64_t t,
                              const int* found, int count, float (*sums)[kMaxSlices], float* row) {
  const int warp = int(threadIdx.x / kWarp), thread = int(threadIdx.x);
  for (int first = 0; first < count; first += kTogether) {
    const int here = min(kTogether, count - first);
    const float factor = thread < here ? w.factors[found[first + thread]] : 0;
    if (warp < w.slices) sum_slice_again(w, x, t, found + first, here, sums);
    __syncthreads();
    if (thread < here) {
      float total = 0;
      for (int s = 0; s < w.slices; ++s) total += sums[thread][s];
      row[found[first + thread]] = total * factor;
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kAgainThreads)
    head_again_kernel(PackedMatrices rows, const float* scales, float error, Activations x,
                      State state, Matrix<float> out) {
  __shared__ int found[kHeadCandidates];
  __shared__ int count;
  __shared__ float sums[kTogether][kMaxSlices];
  if (threadIdx.x == 0) count = 0;
  let_successor_begin();
  __syncthreads();
  wait_for_predecessor();
  const int64_t t = blockIdx.y;
  const unsigned rank = state.floors[t];
  const float floor = rank == 0 ? -INFINITY : value_of(rank), norm = state.norms[t] * error;
  float* row = out.row(t);
#pragma unroll
  for (int i = 0; i < kPart / kAgainThreads; ++i) {
    const int n = int(blockIdx.x) * kPart + i * kAgainThreads + int(threadIdx.x);
    if (n >= out.cols || !(row[n] + norm * scales[n] >= floor)) continue;
    const int slot = atomicAdd(&count, 1);
    if (slot < kHeadCandidates) found[slot] = n;
  }
  __syncthreads();
  if (count == 0) return;
  if (threadIdx.x == 0) atomicAdd(&state.candidates[t], count);
  if (count > kHeadCandidates) return;  // the whole row comes next
  compute_again(rows, x, t, found, count, sums, row);
}

struct WholeWork : LinearWork {
  Activations x;
  const int* candidates = nullptr;

  __device__ Activations begin() const { return x; }
  __device__ void finish(Cursor at, int tile, int i, int n, float low, float high) const {
    if (candidates[first_row + n] > kHeadCandidates) LinearWork::finish(at, tile, i, n, low, high);
  }
};

__global__ void __launch_bounds__(kMaxWarps* kWarp, 1)
    head_whole_kernel(PackedMatrices w, Activations x, Results out, const int* candidates,
                      int items, int together) {
  extern __shared__ __align__(kSharedAlignment) uint8_t shared[];
  let_successor_begin();
  wait_for_predecessor();
  const int begin = int(unsigned(items) * blockIdx.x / gridDim.x);
  const int end = int(unsigned(items) * (blockIdx.x + 1) / gridDim.x);
  for (int first = 0; first < x.rows; first += kRowGroup) {
    const int rows = min(kRowGroup, x.rows - first);
    const bool is_due =
        int(threadIdx.x) < rows && candidates[first + int(threadIdx.x)] > kHeadCandidates;
    if (!__syncthreads_or(is_due)) continue;
    const LinearWork plain{
        .w = w, .out = out, .rows = rows, .first_row = first, .tiles_an_item = together};
    const WholeWork work{plain, x, candidates};
    stream_products<Bf16Unit, kRowGroup>(w, work, begin * together, end - begin, together, shared);
  }
}

unsigned stream_blocks(const Context& context, const PackedMatrices& w, int blocks) {
  return std::min(blocks_for(w.tiles, tiles_together(w)),
                  unsigned(context.device.num_processors * blocks));
}

template <int kColumns>
void stream_codes(const Context& context, const Head& head, const Activations& x,
                  const Results& out, const State& state) {
  using Shape = StreamShape<Int8Unit, kColumns>;
  const PackedMatrices& w = head.codes;
  const int together = tiles_together(w), warps = together * w.slices;
  const auto kernel = head_stream_kernel<kColumns>;
  allow_shared(kernel, Shape::shared_bytes(warps));
  launch(context,
         {.blocks = {stream_blocks(context, w, Shape::kBlocks)},
          .threads = warps * kWarp,
          .shared_bytes = Shape::shared_bytes(warps)},
         kernel, w, x, out, state, head.error, int(blocks_for(w.tiles, together)), together);
}

template <typename Tiles>
void multiply_codes(const Context& context, const Head& head, const Activations& inputs, int x_rows,
                    const Results& out, const State& state) {
  const auto kernel = head_tiles_kernel<Tiles>;
  allow_shared(kernel, Tiles::kSharedBytes);
  launch(
      context,
      {.blocks = {blocks_for(head.codes.tiles, Tiles::kTiles), blocks_for(x_rows, Tiles::kColumns)},
       .threads = Tiles::kThreads,
       .shared_bytes = Tiles::kSharedBytes},
      kernel, head.codes, inputs, x_rows, out, state, head.error);
}

void compute_whole(const Context& context, const Head& head, const Activations& x,
                   const Results& out, const State& state) {
  using Shape = StreamShape<Bf16Unit, kRowGroup>;
  const PackedMatrices& w = head.rows;
  const int together = tiles_together(w), warps = together * w.slices;
  allow_shared(head_whole_kernel, Shape::shared_bytes(warps));
  launch(context,
         {.blocks = {stream_blocks(context, w, 1)},
          .threads = warps * kWarp,
          .shared_bytes = Shape::shared_bytes(warps)},
         head_whole_kernel, w, x, out, static_cast<const int*>(state.candidates),
         int(blocks_for(w.tiles, together)), together);
}

}  // namespace

void head(const Context& context, Tensor x, const Weight& weight, Tensor out) {
  CHECK(x.cols == weight.cols && out.cols == weight.rows && x.rows == out.rows &&
            out.dtype == DType::kF32,
        "%s", weight.name.c_str());
  if (x.rows == 0) return;
  using PlainTiles = MmaTiles<Int8Unit>;
  using SlotTiles = WarpgroupTiles<Int8Unit, kMostColumns>;
  const Head& h = resident_as<Head>(weight);
  const bool streams = x.rows <= kRowGroup, in_slots = order_of_tiles(context) == Order::kSlots;
  const size_t bytes = inputs_bytes(x), rows = size_t(x.rows);
  char* memory = static_cast<char*>(context.workspace.fit(2 * bytes + rows * 3 * sizeof(float)));
  State state{.norms = reinterpret_cast<float*>(memory + 2 * bytes)};
  state.candidates = reinterpret_cast<int*>(state.norms + rows);
  state.floors = reinterpret_cast<unsigned*>(state.candidates + rows);
  const Activations inputs = inputs_of(context, x, memory);
  const Results results{out.data, out.stride, true, false};

  launch(context, {.blocks = {unsigned(rows)}, .threads = kNormThreads}, head_norms_kernel, inputs,
         state);
  if (x.rows == 1) {
    stream_codes<1>(context, h, inputs, results, state);
  } else if (streams) {
    stream_codes<kRowGroup>(context, h, inputs, results, state);
  } else if (in_slots) {
    const Activations slots = slot_inputs(context, x, kMostColumns, memory + bytes);
    multiply_codes<SlotTiles>(context, h, slots, int(rows), results, state);
  } else {
    multiply_codes<PlainTiles>(context, h, inputs, int(rows), results, state);
  }
  launch(context,
         {.blocks = {blocks_for(out.cols, kPart), unsigned(rows)}, .threads = kAgainThreads},
         head_again_kernel, h.rows, h.codes.factors, h.error, inputs, state, Matrix<float>(out));
  compute_whole(context, h, inputs, results, state);
}

}  // namespace nibble::cuda
