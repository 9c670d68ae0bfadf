// out[t][n] = sum_k x[t][k] w[n][k]: a warp an output, over weights decoded to FP32.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/linear.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

template <typename In, typename Out>
__global__ void linear_kernel(Matrix<In> x, const float* w, Matrix<Out> out, bool accumulate) {
  wait_for_predecessor();
  let_successor_begin();
  const int lane = threadIdx.x % kWarp;
  const int64_t n = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (n >= out.cols) return;
  for (int64_t t = blockIdx.y; t < x.rows; t += gridDim.y) {
    float sum = 0;
    for (int64_t k = lane; k < x.cols; k += kWarp) {
      sum += to_float(from_float<bf16>(to_float(x.row(t)[k]))) * w[n * x.cols + k];
    }
    sum = warp_sum(sum);
    if (lane == 0) {
      Out& cell = out.row(t)[n];
      cell = from_float<Out>(accumulate ? to_float(cell) + sum : sum);
    }
  }
}

}  // namespace

std::shared_ptr<const void> upload_linear(const Uploads& to, const Weight& host) {
  return upload_rows(to, host);
}

void linear(const Context& context, Tensor x, const Weight& w, Tensor out, bool accumulate) {
  CHECK(x.cols == w.cols && out.cols == w.rows && x.rows == out.rows, "%s", w.name.c_str());
  const Grid grid{
      .blocks = {blocks_for(out.cols, kWarps), unsigned(std::min<int64_t>(x.rows, 4096))},
      .threads = kThreads};
  with_activation(x.dtype, [&]<typename In>(In) {
    with_activation(out.dtype, [&]<typename Out>(Out) {
      launch(context, grid, linear_kernel<In, Out>, Matrix<In>(x), resident_as<DeviceRows>(w).data,
             Matrix<Out>(out), accumulate);
    });
  });
}

}  // namespace nibble::cuda
