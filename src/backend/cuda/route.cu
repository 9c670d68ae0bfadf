// A block a row: its warps share the experts' products, then warp 0 takes the largest, one after
// another. Bound by the launch and the latency of a chain of about 20 loads and shuffles.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/route.h"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxExperts = 256;

// The larger value; of equals the lower id. NaN counts as less than everything.
__device__ __forceinline__ bool comes_before(float a, int a_id, float b, int b_id) {
  return a > b || (a == b && a_id < b_id);
}

struct Choice {
  float value;
  int id;
};

// The first of the 32 lanes' choices, in every lane.
__device__ __forceinline__ Choice first_of_warp(Choice mine) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float value = __shfl_xor_sync(0xffffffffu, mine.value, offset);
    const int id = __shfl_xor_sync(0xffffffffu, mine.id, offset);
    if (comes_before(value, id, mine.value, mine.id)) mine = {value, id};
  }
  return mine;
}

template <typename In>
__global__ void __launch_bounds__(kThreads)
    route_kernel(Matrix<In> x, const float* router, const float* bias, RouterShape shape,
                 Matrix<int32_t> experts, Matrix<float> weights) {
  __shared__ float scores[kMaxExperts], choices[kMaxExperts];
  wait_for_predecessor();
  let_successor_begin();
  const int64_t t = blockIdx.x;
  const int lane = threadIdx.x % kWarp;
  for (int e = threadIdx.x / kWarp; e < shape.num_experts; e += kWarps) {
    float sum = 0;
    for (int64_t k = lane; k < x.cols; k += kWarp) {
      sum = fmaf(to_float(x.row(t)[k]), router[e * x.cols + k], sum);
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      scores[e] = 1.0f / (1.0f + expf(-sum));
      choices[e] = scores[e] + bias[e];
    }
  }
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  float total = 0;
  for (int k = 0; k < shape.top_k; ++k) {
    Choice best{-INFINITY, kMaxExperts};
    for (int e = lane; e < shape.num_experts; e += kWarp) {
      if (comes_before(choices[e], e, best.value, best.id)) best = {choices[e], e};
    }
    best = first_of_warp(best);
    // Logits that are not numbers choose nothing: the k-th expert keeps the reads within bounds.
    const int chosen = best.id < shape.num_experts ? best.id : k;
    total += scores[chosen];
    if (lane == 0) {
      experts.row(t)[k] = chosen;
      weights.row(t)[k] = scores[chosen];
    }
    __syncwarp();
    if (chosen % kWarp == lane) choices[chosen] = NAN;
  }
  __syncwarp();
  const float scale = shape.scaling / (shape.normalize ? total + 1e-20f : 1.0f);
  if (lane == 0) {
    for (int k = 0; k < shape.top_k; ++k) weights.row(t)[k] *= scale;
  }
}

}  // namespace

void route(const Context& context, Tensor x, const Weight& router, const Weight& bias,
           const RouterShape& shape, Routing out) {
  CHECK(x.cols == router.cols && router.rows == shape.num_experts &&
            bias.cols == shape.num_experts && shape.top_k <= shape.num_experts &&
            shape.num_experts <= kMaxExperts,
        "%s", router.name.c_str());
  with_activation(x.dtype, [&]<typename In>(In) {
    launch(context, {.blocks = {unsigned(x.rows)}, .threads = kThreads}, route_kernel<In>,
           Matrix<In>(x), resident_as<DeviceRows>(router).data, resident_as<DeviceRows>(bias).data,
           shape, Matrix<int32_t>(out.experts), Matrix<float>(out.weights));
  });
}

}  // namespace nibble::cuda
