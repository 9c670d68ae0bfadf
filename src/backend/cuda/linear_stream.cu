// out = x w^T for few rows: packed.h's formula, stream.cuh's tiling, an item = the tiles of a
// block.
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
