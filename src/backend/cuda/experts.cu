// inner[t, k] = silu(gate[e] x[t]) * (up[e] x[t]), rounded to BF16; then
// out[t] = sum over k of weight[t, k] * down[e] inner[t, k]. A warp an output, over weights decoded
// to FP32.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/experts.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

template <typename In>
__device__ float dot(const In* x, const float* w, int64_t cols) {
  float sum = 0;
  for (int64_t k = threadIdx.x % kWarp; k < cols; k += kWarp) {
    sum += to_float(from_float<bf16>(to_float(x[k]))) * w[k];
  }
  return warp_sum(sum);
}

template <typename In>
__global__ void gate_up_kernel(Matrix<In> x, Matrix<const int32_t> experts, const float* w,
                               int64_t width, bf16* inner) {
  wait_for_predecessor();
  let_successor_begin();
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (i >= width) return;
  for (int64_t pair = blockIdx.y; pair < x.rows * experts.cols; pair += gridDim.y) {
    const int64_t t = pair / experts.cols;
    const int64_t e = experts.row(t)[pair % experts.cols];
    const float gate = dot(x.row(t), w + (e * 2 * width + i) * x.cols, x.cols);
    const float up = dot(x.row(t), w + (e * 2 * width + width + i) * x.cols, x.cols);
    if (threadIdx.x % kWarp == 0) inner[pair * width + i] = from_float<bf16>(silu(gate) * up);
  }
}

template <typename Out>
__global__ void down_kernel(const bf16* inner, Matrix<const int32_t> experts,
                            Matrix<const float> weights, const float* w, int64_t width,
                            Matrix<Out> out) {
  wait_for_predecessor();
  let_successor_begin();
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (n >= out.cols) return;
  for (int64_t t = blockIdx.y; t < out.rows; t += gridDim.y) {
    float sum = 0;
    for (int64_t k = 0; k < experts.cols; ++k) {
      const int64_t e = experts.row(t)[k];
      sum += weights.row(t)[k] *
             dot(inner + (t * experts.cols + k) * width, w + (e * out.cols + n) * width, width);
    }
    if (threadIdx.x % kWarp == 0) out.row(t)[n] = from_float<Out>(sum);
  }
}

}  // namespace

std::shared_ptr<const void> upload_experts(const Uploads& to, const Weight& host) {
  return upload_rows(to, host);
}

void experts(const Context& context, Tensor x, const Routing& routing, const Weight& gate_up,
             const Weight& down, Tensor out) {
  const int64_t width = down.cols, pairs = x.rows * routing.experts.cols;
  CHECK(gate_up.rows == 2 * width && gate_up.cols == x.cols && down.rows == out.cols, "%s",
        gate_up.name.c_str());
  bf16* inner = context.workspace.fit_as<bf16>(size_t(pairs * width));
  const auto across = [](int64_t rows) { return unsigned(std::min<int64_t>(rows, 4096)); };
  const Matrix<const int32_t> ids(routing.experts);
  with_activation(x.dtype, [&]<typename In>(In) {
    launch(context, {.blocks = {blocks_for(width, kWarps), across(pairs)}, .threads = kThreads},
           gate_up_kernel<In>, Matrix<In>(x), ids, resident_as<DeviceRows>(gate_up).data, width,
           inner);
  });
  with_activation(out.dtype, [&]<typename Out>(Out) {
    launch(context,
           {.blocks = {blocks_for(out.cols, kWarps), across(out.rows)}, .threads = kThreads},
           down_kernel<Out>, inner, ids, Matrix<const float>(routing.weights),
           resident_as<DeviceRows>(down).data, width, Matrix<Out>(out));
  });
}

}  // namespace nibble::cuda
