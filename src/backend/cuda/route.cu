// A warp multiplies a row by an expert: lane l takes columns 8 l .. 8 l + 7 of each 256, the lanes'
// sums are added as a tree; so a score is the same in both forms below.
//
// Few rows: a block takes four experts of one row, its weights in registers before it waits; the
// last block of a row to arrive chooses. The norm before it may come in the same kernel. Many rows:
// a block takes eight rows and all experts, so that weights are read once for eight rows. Few rows
// are bound by latency, many by FP32.
#include <algorithm>

#include "backend/cuda/columns.cuh"
#include "backend/cuda/dtypes.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/route.h"

namespace nibble::cuda {
namespace {

constexpr int kMaxExperts = 256;
constexpr int kFewRows = 16;
constexpr int kFewWarps = 4;  // experts a block
constexpr int kManyWarps = 16;
constexpr int kRowsABlock = 8;

struct Router {
  const void* rows = nullptr;
  DType dtype = DType::kF32;
  float* scores = nullptr;      // [kFewRows, kMaxExperts]
  unsigned* arrived = nullptr;  // [kFewRows] blocks of a row; 0 between launches
};

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
  for (int s = lane; s < shape.num_shared; s += kWarp) {
    experts[shape.top_k + s] = shape.num_experts + s;
    weights[shape.top_k + s] = 1;
  }
}

// What a row is made of when its norm comes with it.
struct NormRows {
  Matrix<float> x;
  Matrix<const bf16> delta;
  const float* gain;
  float eps;
};

// Makes `values` a warp's row of x + delta; returns what the norm multiplies it by.
__device__ __forceinline__ float load_norm_row(const NormRows& norm, int64_t t,
                                               RowColumns& values) {
  const int64_t cols = norm.x.cols;
  Columns<bf16> added[RowColumns::kSteps];
  values.load(norm.x.row(t), cols);
  if (norm.delta.data != nullptr) {
#pragma unroll
    for (int j = 0; j < RowColumns::kSteps; ++j) {
      const int k = j * kStepColumns + int(threadIdx.x) % kWarp * kLaneColumns;
      if (k < cols) added[j].load(norm.delta.row(t) + k);
    }
#pragma unroll
    for (int j = 0; j < RowColumns::kSteps; ++j) {
      float d[kLaneColumns];
      unpack(added[j], d);
      add_columns(d, values.v[j]);
    }
  }
  float square = 0;
  values.for_each(cols, [&](int, auto& of) { square = add_squares(of, square); });
  return norm_scale(square, cols, norm.eps);
}

// The norm's output.
__device__ __forceinline__ void norm_columns(const float (&value)[kLaneColumns], float scale,
                                             const float (&gain)[kLaneColumns],
                                             float (&v)[kLaneColumns]) {
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) {
    v[i] = to_float(from_float<bf16>(value[i] * scale * gain[i]));
  }
}

// With a norm, x is its output: blocks compute it for themselves, the last one stores it, and x +
// delta, which by then nobody reads any more.
template <typename W, bool kWithNorm>
__global__ void __launch_bounds__(kFewWarps* kWarp)
    few_rows_kernel(NormRows norm, Matrix<bf16> x, const W* router, const float* bias,
                    RouterShape shape, float* all_scores, unsigned* arrived,
                    Matrix<int32_t> experts, Matrix<float> weights) {
  __shared__ bool is_last;
  __shared__ float row_scores[kMaxExperts];
  const int64_t t = blockIdx.y;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int e = blockIdx.x * kFewWarps + warp;
  const W* w_row = router + int64_t(min(e, shape.num_experts - 1)) * x.cols;
  const bool prefetches = x.cols % kStepColumns == 0 && x.cols <= RowColumns::kColumns;
  Columns<W> fetched[RowColumns::kSteps];
  RowColumns gains, values;
  if (prefetches) {
#pragma unroll
    for (int j = 0; j < RowColumns::kSteps; ++j) {
      const int k = j * kStepColumns + lane * kLaneColumns;
      if (k < x.cols) fetched[j].load(w_row + k);
    }
  }
  if (kWithNorm) gains.load(norm.gain, x.cols);
  wait_for_predecessor();
  let_successor_begin();
  float v[kLaneColumns], w[kLaneColumns], sum = 0, scale = 1;
  if (kWithNorm || prefetches) {
    if (kWithNorm) {
      scale = load_norm_row(norm, t, values);
    } else {
      values.load(x.row(t), x.cols);
    }
#pragma unroll
    for (int j = 0; j < RowColumns::kSteps; ++j) {
      if (j * kStepColumns >= x.cols) break;
      unpack(fetched[j], w);
      if (kWithNorm) norm_columns(values.v[j], scale, gains.v[j], v);
      sum = add_products(kWithNorm ? v : values.v[j], w, sum);
    }
  } else {
    for (int64_t k = lane * kLaneColumns; k < x.cols; k += kStepColumns) {
      load_columns(x.row(t), k, x.cols, v);
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
  if (!is_last) return;
  if (kWithNorm && warp == 1) {
#pragma unroll
    for (int j = 0; j < RowColumns::kSteps; ++j) {
      const int k = j * kStepColumns + lane * kLaneColumns;
      if (k >= x.cols) break;
      norm_columns(values.v[j], scale, gains.v[j], v);
      store_columns(v, k, x.cols, x.row(t));
    }
    values.for_each(x.cols, [&](int k, auto& of) { store_columns(of, k, x.cols, norm.x.row(t)); });
  }
  if (warp > 0) return;
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

namespace {

void check(Tensor x, const Weight& router, const Weight& bias, const RouterShape& shape) {
  CHECK(x.cols == router.cols && router.rows == shape.num_experts &&
            bias.cols == shape.num_experts && shape.top_k <= shape.num_experts &&
            shape.num_experts <= kMaxExperts && x.dtype == DType::kBF16,
        "%s", router.name.c_str());
}

template <bool kWithNorm>
void route_few(const Context& context, const NormRows& norm, Tensor x, const Weight& router,
               const Weight& bias, const RouterShape& shape, Routing out) {
  const Router& on_card = resident_as<Router>(router);
  const Grid grid{.blocks = {blocks_for(shape.num_experts, kFewWarps), unsigned(x.rows)},
                  .threads = kFewWarps * kWarp};
  with_activation(on_card.dtype, [&]<typename W>(W) {
    launch(context, grid, few_rows_kernel<W, kWithNorm>, norm, Matrix<bf16>(x),
           static_cast<const W*>(on_card.rows), resident_as<DeviceRows>(bias).data, shape,
           on_card.scores, on_card.arrived, Matrix<int32_t>(out.experts),
           Matrix<float>(out.weights));
  });
}

}  // namespace

void route(const Context& context, Tensor x, const Weight& router, const Weight& bias,
           const RouterShape& shape, Routing out) {
  check(x, router, bias, shape);
  if (x.rows <= kFewRows) {
    return route_few<false>(context, NormRows{}, x, router, bias, shape, out);
  }
  const Router& on_card = resident_as<Router>(router);
  const Grid grid{.blocks = {blocks_for(x.rows, kRowsABlock)}, .threads = kManyWarps * kWarp};
  with_activation(on_card.dtype, [&]<typename W>(W) {
    launch(context, grid, many_rows_kernel<W>, Matrix<const bf16>(x),
           static_cast<const W*>(on_card.rows), resident_as<DeviceRows>(bias).data, shape,
           Matrix<int32_t>(out.experts), Matrix<float>(out.weights));
  });
}

bool can_route_with(const Norm& norm) {
  const auto is_aligned = [](const Tensor& t) {
    return t.data == nullptr ||
           (reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && t.stride % kLaneColumns == 0);
  };
  return norm.x.dtype == DType::kF32 && norm.x.rows <= kFewRows &&
         norm.x.cols % kStepColumns == 0 && norm.x.cols <= RowColumns::kColumns &&
         is_aligned(norm.x) && is_aligned(norm.delta) && is_aligned(norm.out);
}

void norm_and_route(const Context& context, const Norm& norm, const Weight& router,
                    const Weight& bias, const RouterShape& shape, Routing out) {
  check(norm.out, router, bias, shape);
  const NormRows rows{Matrix<float>(norm.x), Matrix<const bf16>(norm.delta), norm.gain, norm.eps};
  route_few<true>(context, rows, norm.out, router, bias, shape, out);
}

}  // namespace nibble::cuda
