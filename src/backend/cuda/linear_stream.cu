// out = x w^T for few rows: packed.h's formula, stream.cuh's tiling, an item = the tiles of a
// block.
#include "backend/cuda/linear_work.cuh"
#include "backend/cuda/stream.cuh"

namespace nibble::cuda {
namespace {

template <typename Unit, int groups>
__global__ void __launch_bounds__(kMaxWarps* kWarp, kStreamBlocks<Unit, groups>)
    linear_stream_kernel(PackedMatrices w, Activations x, Results out) {
  extern __shared__ __align__(16) uint8_t shared[];
  const int together = int(blockDim.x) / kWarp / w.slices;
  const int first_row = int(blockIdx.y) * groups * kRowGroup;
  LinearWork work{.w = w,
                  .out = out,
                  .rows = min(groups * kRowGroup, x.rows - first_row),
                  .first_row = first_row,
                  .tiles_an_item = together};
  const int64_t items = (w.tiles + together - 1) / together;
  stream_products<Unit, groups>(w, x, work, int(items * blockIdx.x / gridDim.x),
                                int(items * (blockIdx.x + 1) / gridDim.x), shared);
}

}  // namespace

void linear_stream(const Context& context, const Activations& x, const PackedMatrices& w,
                   const Results& out) {
  const int together = tiles_together(w), warps = together * w.slices;
  with_unit(w.format, [&]<typename Unit>(Unit) {
    const auto run = [&]<int groups>(std::integral_constant<int, groups>) {
      const auto kernel = linear_stream_kernel<Unit, groups>;
      const size_t shared_bytes = stream_shared_bytes<Unit>(warps);
      allow_shared(kernel, shared_bytes);
      const unsigned items = blocks_for(w.tiles, together);
      const unsigned room = unsigned(context.device.num_processors * kStreamBlocks<Unit, groups>);
      launch(context,
             {.blocks = {std::min(items, room), blocks_for(x.rows, groups * kRowGroup)},
              .threads = warps * kWarp,
              .shared_bytes = shared_bytes},
             kernel, w, x, out);
    };
    if (x.rows <= 8) return run(std::integral_constant<int, 1>());
    if (x.rows <= 16) return run(std::integral_constant<int, 2>());
    run(std::integral_constant<int, 4>());
  });
}

}  // namespace nibble::cuda
