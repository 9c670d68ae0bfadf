// out = x w^T for few rows: packed.h's formula, stream.cuh's tiling, an item = the tiles of a
// block.
//
// Share of 3.0 TB/s (backend_bench --benchmark_filter=wide) on an H100 80GB HBM3, 8 rows:
//   BF16   154880 x 2048  91 %    2048 x 5120  69 %
//   NVFP4  20480 x 2048   58 %    2048 x 10240 38 %     3072 x 2048  35 %
//          2048 x 5120    35 %    5120 x 768   25 %     2048 x 1536  21 %
//          1344 x 2048    17 %
// The small ones are bound by the hand-over to the next kernel and by the chain of one tile.
#include "backend/cuda/linear_work.cuh"
#include "backend/cuda/stream.cuh"

namespace nibble::cuda {
namespace {

struct StreamedLinear : LinearWork {
  Activations x;  // from first_row on

  __device__ int input_row(Cursor, int n) const { return n; }
  __device__ Activations begin() const {
    wait_for_predecessor();
    return x;
  }
};

template <typename Unit>
__global__ void __launch_bounds__(kMaxWarps* kWarp, StreamShape<Unit, kRowGroup>::kBlocks)
    linear_stream_kernel(PackedMatrices w, Activations x, Results out, int items, int together) {
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  const int first_row = int(blockIdx.y) * kRowGroup, rows = min(kRowGroup, x.rows - first_row);
  const LinearWork plain{
      .w = w, .out = out, .rows = rows, .first_row = first_row, .tiles_an_item = together};
  const auto* data = static_cast<const bf16*>(x.data) + first_row * x.stride;
  const StreamedLinear work{plain, {data, x.stride, rows, x.cols}};
  const int begin = int(unsigned(items) * blockIdx.x / gridDim.x);
  const int end = int(unsigned(items) * (blockIdx.x + 1) / gridDim.x);
  stream_products<Unit, kRowGroup>(w, work, begin * together, end - begin, together, shared);
}

}  // namespace

void linear_stream(const Context& context, const Activations& x, const PackedMatrices& w,
                   const Results& out) {
  with_unit(w.format, [&]<typename Unit>(Unit) {
    using Shape = StreamShape<Unit, kRowGroup>;
    const int together = tiles_together(w), warps = together * w.slices;
    const unsigned items = blocks_for(w.tiles, together);
    const unsigned resident = unsigned(context.device.num_processors * Shape::kBlocks);
    const size_t shared_bytes = Shape::shared_bytes(warps);
    const auto kernel = linear_stream_kernel<Unit>;
    allow_shared(kernel, shared_bytes);
    launch(context,
           {.blocks = {std::min(items, resident), blocks_for(x.rows, kRowGroup)},
            .threads = warps * kWarp,
            .shared_bytes = shared_bytes},
           kernel, w, x, out, int(items), together);
  });
}

}  // namespace nibble::cuda
