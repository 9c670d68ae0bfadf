// A warp multiplies a row by an expert: lane l takes columns 8 l .. 8 l + 7 of each 256, the lanes'
// sums are added as a tree; so a score is the same in both forms below.
//
// Few rows: a block takes four experts of one row, its weights in registers before it waits; the
// last block of a row to arrive chooses. Many rows: a block takes eight rows and all experts, so
// that weights are read once for eight rows. Few rows are bound by latency, many by FP32.
#include <algorithm>

#include "backend/cuda/dtypes.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/route.h"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {
namespace {

constexpr int kMaxExperts = 256;
constexpr int kLaneColumns = 8;
constexpr int kStepColumns = kWarp * kLaneColumns;
constexpr int kFewRows = 16;
constexpr int kFewWarps = 4;    // experts a block
constexpr int kPrefetched = 8;  // steps of weights in registers: 2048 columns
constexpr int kManyWarps = 16;
constexpr int kRowsABlock = 8;

struct Router {
  const void* rows = nullptr;
  DType dtype = DType::kF32;
  float* scores = nullptr;      // [kFewRows, kMaxExperts]
  unsigned* arrived = nullptr;  // [kFewRows] blocks of a row; 0 between launches
};

// Eight columns as they lie in memory.
template <typename T>
struct Columns {
  uint4 words[sizeof(T) / 2];

  // Aligned to 16 bytes.
  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < int(sizeof(T) / 2); ++i) words[i] = reinterpret_cast<const uint4*>(from)[i];
  }
};

__device__ __forceinline__ void unpack(const Columns<float>& c, float (&v)[kLaneColumns]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    v[4 * i] = __uint_as_float(c.words[i].x);
    v[4 * i + 1] = __uint_as_float(c.words[i].y);
    v[4 * i + 2] = __uint_as_float(c.words[i].z);
    v[4 * i + 3] = __uint_as_float(c.words[i].w);
  }
}

__device__ __forceinline__ void unpack(const Columns<bf16>& c, float (&v)[kLaneColumns]) {
  const uint32_t words[4] = {c.words[0].x, c.words[0].y, c.words[0].z, c.words[0].w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// Columns k .. k + 7 of a row of `cols`, zeros beyond.
template <typename T>
__device__ __forceinline__ void load_columns(const T* row, int64_t k, int64_t cols,
                                             float (&v)[kLaneColumns]) {
  if (k + kLaneColumns <= cols && reinterpret_cast<uintptr_t>(row + k) % 16 == 0) {
    Columns<T> columns;
    columns.load(row + k);
    return unpack(columns, v);
  }
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) v[i] = k + i < cols ? to_float(row[k + i]) : 0.0f;
}

__device__ __forceinline__ float add_products(const float (&x)[kLaneColumns],
                                              const float (&w)[kLaneColumns], float sum) {
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) sum = fmaf(x[i], w[i], sum);
  return sum;
}

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

struct Choice {
  float value;
  int id;
};

// Whether a is chosen before b: the larger value, of equals the lower id. NaN never is.
__device__ __forceinline__ bool comes_before(Choice a, Choice b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}

// A warp's: the first of the lanes' choices, in every lane.
__device__ __forceinline__ Choice first_of_warp(Choice mine) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Choice other{__shfl_xor_sync(0xffffffffu, mine.value, offset),
                       __shfl_xor_sync(0xffffffffu, mine.id, offset)};
    if (comes_before(other, mine)) mine = other;
  }
  return mine;
}

// A warp chooses for one row, lane l among experts l, l + 32, ...
__device__ void choose(const float* scores, const float* bias, const RouterShape& shape,
                       int32_t* experts, float* weights) {
  constexpr int kMine = kMaxExperts / kWarp;
  const int lane = threadIdx.x % kWarp;
  float choices[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i) {
    const int e = lane + i * kWarp;
    choices[i] = e < shape.num_experts ? scores[e] + bias[e] : NAN;
  }
  float total = 0;
  for (int k = 0; k < shape.top_k; ++k) {
    Choice best{-INFINITY, kMaxExperts};
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const Choice choice{choices[i], lane + i * kWarp};
      if (comes_before(choice, best)) best = choice;
    }
    best = first_of_warp(best);
    // Scores that are not numbers choose nothing: expert k keeps later reads within bounds.
    const int chosen = best.id < shape.num_experts ? best.id : k;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      if (chosen == lane + i * kWarp) choices[i] = NAN;
    }
    total += scores[chosen];
    if (lane == 0) experts[k] = chosen;
  }
  __syncwarp();
  const float scale = shape.scaling / (shape.normalize ? total + 1e-20f : 1.0f);
  for (int k = lane; k < shape.top_k; k += kWarp) weights[k] = scores[experts[k]] * scale;
}

template <typename W>
__global__ void __launch_bounds__(kFewWarps* kWarp)
    few_rows_kernel(Matrix<const bf16> x, const W* router, const float* bias, RouterShape shape,
                    float* all_scores, unsigned* arrived, Matrix<int32_t> experts,
                    Matrix<float> weights) {
  __shared__ bool is_last;
  __shared__ float row_scores[kMaxExperts];
  const int64_t t = blockIdx.y;
  const int lane = threadIdx.x % kWarp;
  const int e = blockIdx.x * kFewWarps + threadIdx.x / kWarp;
  const W* w_row = router + int64_t(min(e, shape.num_experts - 1)) * x.cols;
  const bool prefetches = x.cols % kStepColumns == 0 && x.cols <= kPrefetched * kStepColumns;
  Columns<W> fetched[kPrefetched];
  if (prefetches) {
#pragma unroll
    for (int j = 0; j < kPrefetched; ++j) {
      const int k = j * kStepColumns + lane * kLaneColumns;
      if (k < x.cols) fetched[j].load(w_row + k);
    }
  }
  wait_for_predecessor();
  let_successor_begin();
  const bf16* x_row = x.row(t);
  float v[kLaneColumns], w[kLaneColumns], sum = 0;
  if (prefetches) {
#pragma unroll
    for (int j = 0; j < kPrefetched; ++j) {
      const int k = j * kStepColumns + lane * kLaneColumns;
      if (k >= x.cols) break;
      load_columns(x_row, k, x.cols, v);
      unpack(fetched[j], w);
      sum = add_products(v, w, sum);
    }
  } else {
    for (int64_t k = lane * kLaneColumns; k < x.cols; k += kStepColumns) {
      load_columns(x_row, k, x.cols, v);
      load_columns(w_row, k, x.cols, w);
      sum = add_products(v, w, sum);
    }
  }
  float* scores = all_scores + t * kMaxExperts;
  sum = warp_sum(sum);
  if (lane == 0 && e < shape.num_experts) __stcg(scores + e, sigmoid(sum));
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicAdd(arrived + t, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!is_last || threadIdx.x >= kWarp) return;
  __threadfence();
  if (lane == 0) arrived[t] = 0;
  for (int i = lane; i < shape.num_experts; i += kWarp) row_scores[i] = __ldcg(scores + i);
  __syncwarp();
  choose(row_scores, bias, shape, experts.row(t), weights.row(t));
}

template <typename W>
__global__ void __launch_bounds__(kManyWarps* kWarp)
    many_rows_kernel(Matrix<const bf16> x, const W* router, const float* bias, RouterShape shape,
                     Matrix<int32_t> experts, Matrix<float> weights) {
  __shared__ float scores[kRowsABlock][kMaxExperts];
  wait_for_predecessor();
  let_successor_begin();
  const int64_t first = int64_t(blockIdx.x) * kRowsABlock;
  const int rows = int(min(int64_t(kRowsABlock), x.rows - first));
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int e = warp; e < shape.num_experts; e += kManyWarps) {
    float sums[kRowsABlock] = {};
    for (int64_t k = lane * kLaneColumns; k < x.cols; k += kStepColumns) {
      float w[kLaneColumns], v[kLaneColumns];
      load_columns(router + int64_t(e) * x.cols, k, x.cols, w);
#pragma unroll
      for (int r = 0; r < kRowsABlock; ++r) {
        load_columns(x.row(first + min(r, rows - 1)), k, x.cols, v);
        sums[r] = add_products(v, w, sums[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRowsABlock; ++r) {
      const float sum = warp_sum(sums[r]);
      if (lane == 0) scores[r][e] = sigmoid(sum);
    }
  }
  __syncthreads();
  if (warp >= rows) return;
  choose(scores[warp], bias, shape, experts.row(first + warp), weights.row(first + warp));
}

}  // namespace

std::shared_ptr<const void> upload_router(const Uploads& to, const Weight& host) {
  Router router;
  const bool plain = std::ranges::all_of(host.parts, [](const WeightPart& part) {
    return part.format == Format::kBF16 && part.input_scales == nullptr;
  });
  if (plain) {
    char* rows = static_cast<char*>(to.arena.allocate(size_t(host.rows * host.cols) * 2));
    router.rows = rows;
    router.dtype = DType::kBF16;
    for (const WeightPart& part : host.parts) {
      const size_t bytes = size_t(part.rows * host.cols) * 2;
      CUDA_CHECK(cudaMemcpyAsync(rows, part.values, bytes, cudaMemcpyHostToDevice, to.stream));
      rows += bytes;
    }
  } else {
    router.rows = std::static_pointer_cast<const DeviceRows>(upload_rows(to, host))->data;
  }
  router.scores = static_cast<float*>(to.arena.allocate(kFewRows * kMaxExperts * sizeof(float)));
  router.arrived = static_cast<unsigned*>(to.arena.allocate(kFewRows * sizeof(unsigned)));
  CUDA_CHECK(cudaMemsetAsync(router.arrived, 0, kFewRows * sizeof(unsigned), to.stream));
  CUDA_CHECK(cudaStreamSynchronize(to.stream));
  return std::make_shared<Router>(router);
}

void route(const Context& context, Tensor x, const Weight& router, const Weight& bias,
           const RouterShape& shape, Routing out) {
  CHECK(x.cols == router.cols && router.rows == shape.num_experts &&
            bias.cols == shape.num_experts && shape.top_k <= shape.num_experts &&
            shape.num_experts <= kMaxExperts && x.dtype == DType::kBF16,
        "%s", router.name.c_str());
  const Router& on_card = resident_as<Router>(router);
  const float* biases = resident_as<DeviceRows>(bias).data;
  const Matrix<int32_t> experts(out.experts);
  const Matrix<float> weights(out.weights);
  with_activation(on_card.dtype, [&]<typename W>(W) {
    const W* rows = static_cast<const W*>(on_card.rows);
    if (x.rows <= kFewRows) {
      const Grid grid{.blocks = {blocks_for(shape.num_experts, kFewWarps), unsigned(x.rows)},
                      .threads = kFewWarps * kWarp};
      launch(context, grid, few_rows_kernel<W>, Matrix<const bf16>(x), rows, biases, shape,
             on_card.scores, on_card.arrived, experts, weights);
    } else {
      const Grid grid{.blocks = {blocks_for(x.rows, kRowsABlock)}, .threads = kManyWarps * kWarp};
      launch(context, grid, many_rows_kernel<W>, Matrix<const bf16>(x), rows, biases, shape,
             experts, weights);
    }
  });
}

}  // namespace nibble::cuda
