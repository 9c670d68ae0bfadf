// out = x w^T for few rows: packed.h's formula, stream.cuh's tiling, an item = the tiles of a
// block. One row may be a norm's output, which each block then makes for itself: that takes less
// time than handing it over.
//
// Share of 3.0 TB/s (backend_bench --benchmark_filter=wide) on an H100 80GB HBM3, 1 and 8 rows:
//   BF16   154880 x 2048  96, 91 %      2048 x 5120  75, 69 %
//   NVFP4  20480 x 2048   59, 58 %      2048 x 10240 48, 38 %     3072 x 2048  33, 35 %
//          2048 x 5120    36, 35 %      5120 x 768   24, 25 %     2048 x 1536  21, 21 %
//          1344 x 2048    19, 17 %: 2.7 us, of which its bytes take 0.5
// The small ones are bound by the hand-over to the next kernel and by the chain of one tile.
#include "backend/cuda/dtypes.h"
#include "backend/cuda/linear_work.cuh"
#include "backend/cuda/norm_row.cuh"
#include "backend/cuda/stream.cuh"

namespace nibble::cuda {
namespace {

// Of a block's inputs, in shared memory.
struct InputMemory {
  float* sums = nullptr;      // kWarp a step of columns; used before the products
  float* added = nullptr;     // a row
  uint8_t* inputs = nullptr;  // a row in BF16
};

// Activations as they lie in memory.
struct PlainRows {
  Activations x;

  static size_t shared_bytes(int, int) { return 0; }
  __device__ static InputMemory memory(float*, uint8_t*, int, int) { return {}; }
  __device__ Activations begin(int first_row, int rows, int, int, const InputMemory&) const {
    wait_for_predecessor();
    const auto* data = static_cast<const bf16*>(x.data) + first_row * x.stride;
    return {data, x.stride, rows, x.cols};
  }
  __device__ void end(const InputMemory&) const {}
};

// One row: a warp brings the columns of its slice into shared memory, all at once. The warps of
// each tile have a row of their own there.
struct PlainRow {
  Activations x;

  static size_t shared_bytes(int cols, int together) {
    return size_t(together) * cols * sizeof(bf16);
  }
  __device__ static InputMemory memory(float* sums, uint8_t* own, int cols, int part) {
    return {.sums = sums, .inputs = own + size_t(part) * cols * sizeof(bf16)};
  }
  __device__ Activations begin(int, int, int first, int end, const InputMemory& memory) const {
    constexpr int kAtOnce = 3;  // loads of a lane
    const auto* from = static_cast<const uint4*>(x.data);
    auto* to = reinterpret_cast<uint4*>(memory.inputs);
    const int pieces = min(end, x.cols) / kLaneColumns;
    wait_for_predecessor();
    for (int i = first / kLaneColumns + int(threadIdx.x) % kWarp; i < pieces;
         i += kAtOnce * kWarp) {
      uint4 v[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (i + k * kWarp < pieces) v[k] = from[i + k * kWarp];
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        if (i + k * kWarp < pieces) to[i + k * kWarp] = v[k];
      }
    }
    __syncwarp();
    return {memory.inputs, x.cols, 1, x.cols};
  }
  __device__ void end(const InputMemory&) const {}
};

// A row's norm. The first block stores it; the last block to have read x stores x + delta.
template <typename X>
struct NormedRow {
  NormRows<X> norm;
  unsigned* arrived;  // 0 between launches
  unsigned ticket = 0;

  static size_t shared_bytes(int cols, int) {
    return size_t(cols) * (sizeof(bf16) + sizeof(float));
  }
  __device__ static InputMemory memory(float* sums, uint8_t* own, int cols, int) {
    return {.sums = sums,
            .added = reinterpret_cast<float*>(own),
            .inputs = own + size_t(cols) * sizeof(float)};
  }
  __device__ Activations begin(int, int, int, int, const InputMemory& memory) {
    const int column = int(threadIdx.x) * kLaneColumns, cols = int(norm.x.cols);
    const Columns<float> gains = gains_of_thread(norm);
    wait_for_predecessor();
    float v[kLaneColumns];
    norm_row(norm, gains, 0, memory.sums, memory.added, v);
    if (column < cols) {
      store_columns(v, column, cols, reinterpret_cast<bf16*>(memory.inputs));
      if (blockIdx.x == 0) store_columns(v, column, cols, norm.out.data);
    }
    if (norm.delta.data != nullptr && threadIdx.x == 0) ticket = atomicAdd(arrived, 1u);
    __syncthreads();
    return {memory.inputs, cols, 1, cols};
  }
  __device__ void end(const InputMemory& memory) const {
    if (norm.delta.data == nullptr) return;
    const bool is_last = threadIdx.x == 0 && ticket == gridDim.x - 1;
    if (!__syncthreads_or(is_last)) return;
    store_added(norm, 0, memory.added);
    if (threadIdx.x == 0) *arrived = 0;
  }
};

template <typename Source>
struct StreamedLinear : LinearWork {
  Source& source;
  InputMemory memory;
  int slice_columns = 0;

  __device__ int input_row(Cursor, int n) const { return n; }
  __device__ Activations begin() const {
    const int first = int(threadIdx.x) / kWarp % w.slices * slice_columns;
    return source.begin(first_row, rows, first, first + slice_columns, memory);
  }
};

template <typename Unit, int kColumns, typename Source>
__global__ void __launch_bounds__(kMaxWarps* kWarp, StreamShape<Unit, kColumns>::kBlocks)
    linear_stream_kernel(PackedMatrices w, Source source, int num_rows, Results out, int items,
                         int together) {
  using Shape = StreamShape<Unit, kColumns>;
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  const int first_row = int(blockIdx.y) * kColumns, rows = min(kColumns, num_rows - first_row);
  const LinearWork plain{
      .w = w, .out = out, .rows = rows, .first_row = first_row, .tiles_an_item = together};
  const InputMemory memory = Source::memory(
      reinterpret_cast<float*>(shared), shared + Shape::shared_bytes(int(blockDim.x) / kWarp),
      w.units * Unit::kInputs, int(threadIdx.x) / kWarp / w.slices);
  const StreamedLinear<Source> work{plain, source, memory, w.units_per_slice * Unit::kInputs};
  const int begin = int(unsigned(items) * blockIdx.x / gridDim.x);
  const int end = int(unsigned(items) * (blockIdx.x + 1) / gridDim.x);
  stream_products<Unit, kColumns>(w, work, begin * together, end - begin, together, shared);
  source.end(memory);
}

// Blocks that take `items` between them.
template <typename Shape>
unsigned blocks_of(const Context& context, unsigned items) {
  return std::min(items, unsigned(context.device.num_processors * Shape::kBlocks));
}

template <int kColumns, typename Unit, typename Source>
void launch_stream(const Context& context, const PackedMatrices& w, const Source& source, int rows,
                   const Results& out) {
  using Shape = StreamShape<Unit, kColumns>;
  const int together = tiles_together(w), warps = together * w.slices;
  const unsigned items = blocks_for(w.tiles, together);
  const size_t shared_bytes =
      Shape::shared_bytes(warps) + Source::shared_bytes(w.units * Unit::kInputs, together);
  const auto kernel = linear_stream_kernel<Unit, kColumns, Source>;
  allow_shared(kernel, shared_bytes);
  launch(context,
         {.blocks = {blocks_of<Shape>(context, items), blocks_for(rows, kColumns)},
          .threads = warps * kWarp,
          .shared_bytes = shared_bytes},
         kernel, w, source, rows, out, int(items), together);
}

}  // namespace

void linear_stream(const Context& context, const Activations& x, const PackedMatrices& w,
                   const Results& out) {
  with_unit(w.format, [&]<typename Unit>(Unit) {
    if (x.rows == 1) return launch_stream<1, Unit>(context, w, PlainRow{x}, 1, out);
    launch_stream<kRowGroup, Unit>(context, w, PlainRows{x}, x.rows, out);
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
    launch_stream<1, Nvfp4Unit>(context, w, source, 1, out);
  });
}

}  // namespace nibble::cuda
