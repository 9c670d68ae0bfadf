// out = x w^T for many rows: packed.h's formula, the tiling of tiles.cuh or warpgroup_tiles.cuh.
//
// TFLOP/s of NVFP4 with 2,048 rows, the reordering of x included, on an H100 80GB HBM3, of 790 that
// the vendor's product reaches: 2048 x 10240 467, 2048 x 5120 448, 20480 x 2048 436, 3072 x 2048
// 403, 2048 x 1536 358, 5120 x 768 295, 1344 x 2048 258 (its tiles do not fill the last wave). With
// tiles.cuh on the same card: 2048 x 5120 281, 1344 x 2048 185.
#include "backend/cuda/linear_work.cuh"
#include "backend/cuda/tile_ways.cuh"

namespace nibble::cuda {
namespace {

template <typename Tiles>
__global__ void __launch_bounds__(Tiles::kThreads, Tiles::kBlocks)
    linear_tiles_kernel(PackedMatrices w, Activations x, Results out) {
  extern __shared__ __align__(kSharedAlignment) uint8_t shared[];
  __shared__ int rows[Tiles::kColumns];
  let_successor_begin();
  const int first = int(blockIdx.y) * Tiles::kColumns;
  const int columns = min(Tiles::kColumns, x.rows - first);
  for (int n = int(threadIdx.x); n < Tiles::kColumns; n += Tiles::kThreads) {
    rows[n] = n < columns ? first + n : -1;
  }
  __syncthreads();
  const LinearWork work{.w = w, .out = out, .rows = columns, .first_row = first};
  Tiles::multiply(w, x, work, 0, int(blockIdx.x) * Tiles::kTiles, int(blockIdx.y), columns, rows,
                  shared);
}

}  // namespace

void linear_tiles(const Context& context, const Tensor& x, const PackedMatrices& w,
                  const Results& out, void* memory) {
  with_tiles(context, w.format, int(x.rows), [&]<typename Tiles>(Tiles) {
    const Activations inputs = Tiles::kOrder == Order::kPlain
                                   ? inputs_of(context, x, memory)
                                   : slot_inputs(context, x, Tiles::kColumns, memory);
    allow_shared(linear_tiles_kernel<Tiles>, Tiles::kSharedBytes);
    launch(context,
           {.blocks = {blocks_for(w.tiles, Tiles::kTiles), blocks_for(x.rows, Tiles::kColumns)},
            .threads = Tiles::kThreads,
            .shared_bytes = Tiles::kSharedBytes},
           linear_tiles_kernel<Tiles>, w, inputs, out);
  });
}

}  // namespace nibble::cuda
