// out = x w^T for few rows: packed.h's formula, stream.cuh's tiling, an item = the tiles of a
// block.
//
// Share of 3.0 TB/s: the matrix's bytes over the time of one of many launches in a graph, on an
// H100 80GB HBM3, 1 and 8 rows:
//   BF16   154880 x 2048  100, 97 %     2048 x 5120  82, 78 %
//   NVFP4  20480 x 2048   66, 66 %      2048 x 10240 44, 42 %     3072 x 2048  40, 37 %
//          2048 x 5120    39, 37 %      5120 x 768   29, 27 %     2048 x 1536  26, 23 %
//          1344 x 2048    24, 19 %: 2.1 us, of which its bytes take 0.5
// The small ones are bound by the hand-over to the next kernel and by the chain of one tile.
#include "backend/cuda/linear_work.cuh"
#include "backend/cuda/stream.cuh"

namespace nibble::cuda {
namespace {

template <typename Unit, int kColumns>
__global__ void __launch_bounds__(kMaxWarps* kWarp, StreamShape<Unit, kColumns>::kBlocks)
    linear_stream_kernel(PackedMatrices w, Activations x, Results out, int items, int together) {
  extern __shared__ __align__(16) uint8_t shared[];
  let_successor_begin();
  const int first_row = int(blockIdx.y) * kColumns;
  const LinearWork work{.w = w,
                        .out = out,
                        .rows = min(kColumns, x.rows - first_row),
                        .first_row = first_row,
                        .tiles_an_item = together};
  const int begin = int(unsigned(items) * blockIdx.x / gridDim.x);
  const int end = int(unsigned(items) * (blockIdx.x + 1) / gridDim.x);
  stream_products<Unit, kColumns>(w, x, work, begin * together, end - begin, together, shared);
}

}  // namespace

void linear_stream(const Context& context, const Activations& x, const PackedMatrices& w,
                   const Results& out) {
  const int together = tiles_together(w), warps = together * w.slices;
  const unsigned items = blocks_for(w.tiles, together);
  with_unit(w.format, [&]<typename Unit>(Unit) {
    const auto run = [&]<int kColumns>(std::integral_constant<int, kColumns>) {
      using Shape = StreamShape<Unit, kColumns>;
      const auto kernel = linear_stream_kernel<Unit, kColumns>;
      allow_shared(kernel, Shape::shared_bytes(warps));
      const unsigned room = unsigned(context.device.num_processors * Shape::kBlocks);
      launch(context,
             {.blocks = {std::min(items, room), blocks_for(x.rows, kColumns)},
              .threads = warps * kWarp,
              .shared_bytes = Shape::shared_bytes(warps)},
             kernel, w, x, out, int(items), together);
    };
    if (x.rows == 1) return run(std::integral_constant<int, 1>());
    run(std::integral_constant<int, kRowGroup>());
  });
}

}  // namespace nibble::cuda
