// Brings activations into the form that the products read: BF16, aligned rows or tiles.
#include <algorithm>

#include "backend/cuda/ptx.cuh"
#include "backend/cuda/slots.cuh"

namespace nibble::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLargestTile = 128;

template <typename In>
__global__ void round_rows_kernel(Matrix<In> x, bf16* out, int64_t stride) {
  let_successor_begin();
  wait_for_predecessor();
  const int64_t k = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k >= stride) return;
  for (int64_t t = blockIdx.y; t < x.rows; t += gridDim.y) {
    out[t * stride + k] = from_float<bf16>(k < x.cols ? to_float(x.row(t)[k]) : 0);
  }
}

// A thread a piece; eight threads the pieces of a row's chunk.
template <typename In>
__global__ void slot_inputs_kernel(Matrix<In> x, int tile_rows, int pieces, bf16* out) {
  let_successor_begin();
  wait_for_predecessor();
  const int piece = int(blockIdx.x) * 8 + int(threadIdx.x % 8);
  const int row = int(blockIdx.y * (blockDim.x / 8) + threadIdx.x / 8);
  const int tile = row / tile_rows;
  write_piece(row < x.rows ? x.row(row) : nullptr, int(x.cols), row % tile_rows, piece, tile_rows,
              out + int64_t(tile) * tile_rows * pieces * 8);
}

bool is_ready(const Tensor& x) {
  return x.dtype == DType::kBF16 && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
         x.stride % 8 == 0 && x.cols % 16 == 0;
}

}  // namespace

size_t inputs_bytes(const Tensor& x) {
  const int64_t rows = (x.rows + kLargestTile - 1) / kLargestTile * kLargestTile;
  return size_t(rows * padded_columns(x.cols)) * sizeof(bf16);
}

Activations inputs_of(const Context& context, const Tensor& x, void* memory) {
  if (is_ready(x)) return {x.data, x.stride, int(x.rows), int(x.cols)};
  const int64_t stride = padded_columns(x.cols);
  with_activation(x.dtype, [&]<typename In>(In) {
    launch(context,
           {.blocks = {blocks_for(stride, kThreads), unsigned(std::min<int64_t>(x.rows, 65535))},
            .threads = kThreads},
           round_rows_kernel<In>, Matrix<In>(x), static_cast<bf16*>(memory), stride);
  });
  return {memory, stride, int(x.rows), int(stride)};
}

Activations slot_inputs(const Context& context, const Tensor& x, int tile_rows, void* memory) {
  const int64_t cols = padded_columns(x.cols);
  const int64_t rows = (x.rows + tile_rows - 1) / tile_rows * tile_rows;
  with_activation(x.dtype, [&]<typename In>(In) {
    launch(context,
           {.blocks = {unsigned(cols / 64), unsigned(rows / (kThreads / 8))}, .threads = kThreads},
           slot_inputs_kernel<In>, Matrix<In>(x), tile_rows, int(cols / 8),
           static_cast<bf16*>(memory));
  });
  return {memory, cols, int(x.rows), int(cols)};
}

Order order_of_tiles(const Context& context) {
  return context.device.arch == 90 ? Order::kSlots : Order::kPlain;
}

}  // namespace nibble::cuda
