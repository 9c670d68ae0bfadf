// out = x w^T for many rows: packed.h's formula, tiles.cuh's tiling.
#include "backend/cuda/linear_work.cuh"
#include "backend/cuda/tiles.cuh"

namespace nibble::cuda {
namespace {

template <typename Unit>
__global__ void __launch_bounds__(kTileThreads, 2)
    linear_tiles_kernel(PackedMatrices w, Activations x, Results out) {
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ int rows[kTileColumns];
  const int first = int(blockIdx.y) * kTileColumns;
  const int columns = min(kTileColumns, x.rows - first);
  for (int n = int(threadIdx.x); n < kTileColumns; n += kTileThreads) {
    rows[n] = n < columns ? first + n : -1;
  }
  __syncthreads();
  LinearWork work{.w = w, .out = out, .rows = columns, .first_row = first};
  multiply_tiles<Unit>(w, x, work, 0, int(blockIdx.x) * TileShape<Unit>::kTiles, columns, rows,
                       shared);
}

}  // namespace

void linear_tiles(const Context& context, const Activations& x, const PackedMatrices& w,
                  const Results& out) {
  with_unit(w.format, [&]<typename Unit>(Unit) {
    using Shape = TileShape<Unit>;
    allow_shared(linear_tiles_kernel<Unit>, Shape::kSharedBytes);
    launch(context,
           {.blocks = {blocks_for(w.tiles, Shape::kTiles), blocks_for(x.rows, kTileColumns)},
            .threads = kTileThreads,
            .shared_bytes = Shape::kSharedBytes},
           linear_tiles_kernel<Unit>, w, x, out);
  });
}

}  // namespace nibble::cuda
