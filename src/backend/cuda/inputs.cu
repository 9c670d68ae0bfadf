// Rounds activations to BF16 rows that the products can read.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/products.h"
#include "backend/cuda/ptx.cuh"
#include "backend/cuda/tile.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;

int64_t padded(int64_t cols) {
  return (cols + 15) / 16 * 16;
}

template <typename In>
__global__ void round_rows_kernel(Matrix<In> x, bf16* out, int64_t stride) {
  let_successor_begin();
  wait_for_predecessor();
  for (int64_t t = blockIdx.y; t < x.rows; t += gridDim.y) {
    const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (k < stride) out[t * stride + k] = from_float<bf16>(k < x.cols ? to_float(x.row(t)[k]) : 0);
  }
}

bool is_aligned(const Tensor& x) {
  const int64_t values = 16 / int64_t(dtype_bytes(x.dtype));
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.stride % values == 0 &&
         x.cols % 16 == 0;
}

}  // namespace

size_t inputs_bytes(const Tensor& x) {
  return size_t(x.rows * padded(x.cols)) * sizeof(bf16);
}

Activations inputs_of(const Context& context, const Tensor& x, bool allow_f32, void* memory) {
  const bool is_f32 = x.dtype == DType::kF32;
  if (is_aligned(x) && (allow_f32 || !is_f32)) {
    return {x.data, x.stride, int(x.rows), int(x.cols), is_f32};
  }
  const int64_t stride = padded(x.cols);
  with_activation(x.dtype, [&]<typename In>(In) {
    launch(context,
           {.blocks = {blocks_for(stride, kThreads), unsigned(std::min<int64_t>(x.rows, 65535))},
            .threads = kThreads},
           round_rows_kernel<In>, Matrix<In>(x), static_cast<bf16*>(memory), stride);
  });
  return {memory, stride, int(x.rows), int(stride), false};
}

}  // namespace nibble::cuda
