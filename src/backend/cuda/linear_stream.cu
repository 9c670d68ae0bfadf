// out = x w^T for few rows: packed.h's formula, stream.cuh's tiling, an item = the tiles of a
// block. One row may be a norm's output, which each block then makes for itself: that takes less
// time than handing it over.
//
// Share of 3.0 TB/s (backend_bench --benchmark_filter=wide) on an H100 80GB HBM3, 1 and 8 rows:
//   BF16   154880 x 2048  95, 92 %      2048 x 5120  72, 69 %
//   NVFP4  20480 x 2048   59, 56 %      2048 x 10240 42, 38 %     3072 x 2048  38, 36 %
//          2048 x 5120    38, 34 %      5120 x 768   27, 25 %     2048 x 1536  24, 21 %
//          1344 x 2048    22, 17 %: 2.3 us, of which its bytes take 0.5
// The small ones are bound by the hand-over to the next kernel and by the chain of one tile.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/linear_work.cuh"
#include "backend/cuda/norm_row.cuh"
#include "backend/cuda/stream.cuh"

namespace nibble::cuda {
namespace {

// Activations as they lie in memory.
struct PlainRows {
  Activations x;

  __device__ Activations begin(int first_row, int rows, float*, uint8_t*) {
    wait_for_predecessor();
    const auto* data = static_cast<const bf16*>(x.data) + first_row * x.stride;
    return {data, x.stride, rows, x.cols};
  }
  __device__ void end(int, int) const {}
};

// A row's norm. The first block stores it; the last block to have read x stores x + delta.
template <typename X>
struct NormedRow {
  NormRows<X> norm;
  unsigned* arrived;  // 0 between launches
  unsigned ticket = 0;

  __device__ Activations begin(int, int, float* sums, uint8_t* normed) {
    const int column = int(threadIdx.x) * kLaneColumns, cols = int(norm.x.cols);
    const Columns<float> gains = gains_of_thread(norm);
    wait_for_predecessor();
    float v[kLaneColumns];
    norm_row(norm, gains, 0, sums, v);
    if (column < cols) {
      store_columns(v, column, cols, reinterpret_cast<bf16*>(normed));
      if (blockIdx.x == 0) store_columns(v, column, cols, norm.out.data);
    }
    if (norm.delta.data != nullptr && threadIdx.x == 0) ticket = atomicAdd(arrived, 1u);
    __syncthreads();
    return {normed, cols, 1, cols};
  }
  __device__ void end(int, int) const {
    if (norm.delta.data == nullptr) return;
    const bool is_last = threadIdx.x == 0 && ticket == gridDim.x - 1;
    if (!__syncthreads_or(is_last)) return;
    add_delta(norm, 0);
    if (threadIdx.x == 0) *arrived = 0;
  }
};

template <typename Source>
struct StreamedLinear : LinearWork {
  Source& source;
  float* sums;
  uint8_t* normed;

  __device__ int input_row(Cursor, int n) const { return n; }
  __device__ Activations begin() const { return source.begin(first_row, rows, sums, normed); }
};

template <typename Unit, int kColumns, typename Source>
__global__ void __launch_bounds__(kMaxWarps* kWarp, StreamShape<Unit, kColumns>::kBlocks)
    linear_stream_kernel(PackedMatrices w, Source source, int num_rows, Results out, int items,
                         int together) {
  using Shape = StreamShape<Unit, kColumns>;
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  const int first_row = int(blockIdx.y) * kColumns, rows = min(kColumns, num_rows - first_row);
  const StreamedLinear<Source> work{
      {.w = w, .out = out, .rows = rows, .first_row = first_row, .tiles_an_item = together},
      source,
      reinterpret_cast<float*>(shared),
      shared + Shape::shared_bytes(int(blockDim.x) / kWarp)};
  const int begin = int(unsigned(items) * blockIdx.x / gridDim.x);
  const int end = int(unsigned(items) * (blockIdx.x + 1) / gridDim.x);
  stream_products<Unit, kColumns>(w, work, begin * together, end - begin, together, shared);
  source.end(first_row, rows);
}

// Blocks that take `items` between them.
template <typename Shape>
unsigned blocks_of(const Context& context, unsigned items) {
  return std::min(items, unsigned(context.device.num_processors * Shape::kBlocks));
}

template <int kColumns, typename Unit, typename Source>
void launch_stream(const Context& context, const PackedMatrices& w, const Source& source, int rows,
                   size_t source_bytes, const Results& out) {
  using Shape = StreamShape<Unit, kColumns>;
  const int together = tiles_together(w), warps = together * w.slices;
  const unsigned items = blocks_for(w.tiles, together);
  const size_t shared_bytes = Shape::shared_bytes(warps) + source_bytes;
  const auto kernel = linear_stream_kernel<Unit, kColumns, Source>;
  allow_shared(kernel, shared_bytes);
  launch(context,
         {.blocks = {blocks_of<Shape>(context, items), blocks_for(rows, kColumns)},
          .threads = warps * kWarp,
          .shared_bytes = shared_bytes},
         kernel, w, source, rows, out, int(items), together);
}

// Calls run(std::integral_constant<int, kColumns>()).
template <typename Run>
void with_columns(int rows, Run&& run) {
  if (rows == 1) return run(std::integral_constant<int, 1>());
  run(std::integral_constant<int, kRowGroup>());
}

}  // namespace

void linear_stream(const Context& context, const Activations& x, const PackedMatrices& w,
                   const Results& out) {
  with_unit(w.format, [&]<typename Unit>(Unit) {
    with_columns(x.rows, [&]<int kColumns>(std::integral_constant<int, kColumns>) {
      launch_stream<kColumns, Unit>(context, w, PlainRows{x}, x.rows, 0, out);
    });
  });
}

bool can_stream_norm(const Norm& norm, const PackedMatrices& w) {
  return is_in_steps(norm) && norm.x.rows == 1 && w.format == Format::kNvfp4 &&
         norm.x.cols / kStepColumns <= tiles_together(w) * w.slices &&
         (norm.delta.data == nullptr || norm.x.dtype == DType::kF32);
}

void norm_and_linear_stream(const Context& context, const Norm& norm, const PackedMatrices& w,
                            const Results& out) {
  with_activation(norm.x.dtype, [&]<typename X>(X) {
    const NormedRow<X> source{{Matrix<X>(norm.x), Matrix<const bf16>(norm.delta), norm.gain,
                               norm.eps, Matrix<bf16>(norm.out)},
                              norm.arrived};
    launch_stream<1, Nvfp4Unit>(context, w, source, 1, size_t(w.cols) * sizeof(bf16), out);
  });
}

}  // namespace nibble::cuda
